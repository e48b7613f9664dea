"""A serverless model and requests for it."""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.gateway.tensors import Tensor, add_input, number_tensor, string_tensor

CONFIG = """
backend: "serverless"
max_batch_size: 0
model_transaction_policy { decoupled: true }
instance_group [{ kind: KIND_CPU, count: 1 }]
input [
  { name: "text_input" data_type: TYPE_STRING dims: [1] optional: true },
  { name: "stream" data_type: TYPE_BOOL dims: [1] optional: true },
  { name: "sampling_parameters" data_type: TYPE_STRING dims: [1] optional: true },
  { name: "exclude_input_in_output" data_type: TYPE_BOOL dims: [1] optional: true },
  { name: "return_finish_reason" data_type: TYPE_BOOL dims: [1] optional: true },
  { name: "return_num_input_tokens" data_type: TYPE_BOOL dims: [1] optional: true },
  { name: "return_num_output_tokens" data_type: TYPE_BOOL dims: [1] optional: true },
  { name: "input_ids" data_type: TYPE_INT32 dims: [-1] optional: true },
  { name: "messages" data_type: TYPE_STRING dims: [1] optional: true },
  { name: "resume_token_ids" data_type: TYPE_INT32 dims: [-1] optional: true }
]
output [
  { name: "text_output" data_type: TYPE_STRING dims: [-1] },
  { name: "finish_reason" data_type: TYPE_STRING dims: [-1] },
  { name: "num_input_tokens" data_type: TYPE_UINT32 dims: [1] },
  { name: "num_output_tokens" data_type: TYPE_UINT32 dims: [1] },
  { name: "output_ids" data_type: TYPE_INT32 dims: [-1] },
  { name: "prompt_ids" data_type: TYPE_INT32 dims: [-1] },
  { name: "attempt" data_type: TYPE_INT32 dims: [1] },
  { name: "first_position" data_type: TYPE_INT32 dims: [1] }
]
parameters { key: "checkpoint" value { string_value: "/checkpoints/m" } }
parameters { key: "checkpoint_bytes" value { string_value: "1000" } }
parameters { key: "kv_cache_bytes" value { string_value: "1000" } }
"""


def add_model(repository: Path, name: str, config: str = CONFIG) -> Path:
    directory = repository / name
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(config)
    return directory


def infer_request(*extra: Tensor, model: str = "m", text: bytes = b"hi", client_id: str = "c1") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=client_id)
    for tensor in (string_tensor("text_input", text), *extra):
        add_input(request, tensor)
    return request


def flag(name: str, value: bool = True) -> Tensor:
    return number_tensor(name, "BOOL", [value])
