"""A model's config.pbtxt: the tensors every model of ours has, and the specification in its `parameters`.

It is complete, because Triton's auto-completion costs more than a second a load. Where it is written is
`model_repository`'s.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serverless_triton.backend.errors import InvalidModelConfig
from serverless_triton.backend.messages import ModelSpec

BACKEND = "serverless"

# Name → Triton's data type, size. As Triton's vllm_backend has them, and ours besides.
_INPUTS = {
    "text_input": ("TYPE_STRING", 1),
    "input_ids": ("TYPE_INT32", -1),
    "messages": ("TYPE_STRING", 1),  # a chat, as JSON
    "stream": ("TYPE_BOOL", 1),
    "sampling_parameters": ("TYPE_STRING", 1),
    "exclude_input_in_output": ("TYPE_BOOL", 1),
    "return_finish_reason": ("TYPE_BOOL", 1),
    "return_num_input_tokens": ("TYPE_BOOL", 1),
    "return_num_output_tokens": ("TYPE_BOOL", 1),
    "return_logprobs": ("TYPE_BOOL", 1),  # refused, but with a reason of ours
    "resume_token_ids": ("TYPE_INT32", -1),
}
_OUTPUTS = {
    "text_output": ("TYPE_STRING", -1),
    "finish_reason": ("TYPE_STRING", -1),
    "num_input_tokens": ("TYPE_UINT32", -1),
    "num_output_tokens": ("TYPE_UINT32", -1),
    "output_ids": ("TYPE_INT32", -1),
    "prompt_ids": ("TYPE_INT32", -1),
    "attempt": ("TYPE_INT32", 1),
    "first_position": ("TYPE_INT32", 1),
    "held_tokens": ("TYPE_INT32", 1),  # of a request that is queued, prefilling or catching up
    "total_tokens": ("TYPE_INT32", 1),
    "token_state": ("TYPE_STRING", 1),  # of a stream that was frozen, see docs/formats.md
    "failure": ("TYPE_STRING", 2),  # code and message, for a gateway
}


def render_config(name: str, spec: ModelSpec) -> str:
    """The text of config.pbtxt."""
    config = model_config_pb2.ModelConfig(name=name, backend=BACKEND, max_batch_size=0)
    config.model_transaction_policy.decoupled = True
    # The stub's place; device memory belongs to the engine worker, and the scheduler chooses its device.
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    for tensor, (data_type, size) in _INPUTS.items():
        config.input.add(name=tensor, data_type=_value(data_type), dims=[size], optional=True)
    for tensor, (data_type, size) in _OUTPUTS.items():
        config.output.add(name=tensor, data_type=_value(data_type), dims=[size])
    for parameter, value in spec_parameters(spec).items():
        config.parameters[parameter].string_value = value
    return str(text_format.MessageToString(config))


def spec_parameters(spec: ModelSpec) -> dict[str, str]:
    """As `ModelSpec.parse` takes them; what is not said has its default."""
    return {field.name: str(getattr(spec, field.name)) for field in fields(spec) if getattr(spec, field.name)}


def _value(data_type: str) -> Any:
    return model_config_pb2.DataType.Value(data_type)


def parse_parameters(text: str) -> dict[str, str] | None:
    """The `parameters` of a config.pbtxt, or None where the model is another backend's.

    Raises InvalidModelConfig with the line and what is wrong there.
    """
    try:
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise InvalidModelConfig(f"config.pbtxt:{error}") from error
    if config.backend != BACKEND:
        return None
    return {name: parameter.string_value for name, parameter in config.parameters.items()}
