"""An infer request's body that is nothing but its model's one input, whose shape follows from its size."""

from __future__ import annotations

import math
import struct

from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.catalogue import ModelEntry, datatype
from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.tensors import ELEMENT_BYTES, Tensor, add_input

_ANY = -1  # a dimension that the configuration leaves open
_NO_ID = "[request id: <id_unknown>] "


def read_raw_body(body: bytes, entry: ModelEntry, version: str) -> pb.ModelInferRequest:
    """Raises InvalidRequest in Triton's words where the model has not one input, or its shape does not follow."""
    inputs = entry.config.input
    if len(inputs) != 1:
        raise InvalidRequest(
            f"{_NO_ID}Raw request must only have 1 input (found 1) to be deduced but got {len(inputs)} inputs in "
            f"'{entry.name}' model configuration"
        )
    request = pb.ModelInferRequest(model_name=entry.name, model_version=version)
    add_input(request, _tensor(inputs[0], body, batched=bool(entry.config.max_batch_size)))
    return request


def _tensor(wanted: model_config_pb2.ModelInput, body: bytes, *, batched: bool) -> Tensor:
    dims, kind = list(wanted.dims), datatype(wanted)
    fixed = math.prod(size for size in dims if size != _ANY)
    if dims.count(_ANY) > 1:
        raise InvalidRequest(
            f"{_NO_ID}The shape of the raw input '{wanted.name}' can not be deduced because there are more than one "
            "variable-sized dimension"
        )
    if kind == "BYTES":
        if _ANY in dims or fixed != 1:
            shape = f"{_NO_ID}For BYTE datatype raw input '{wanted.name}', the model must have input shape [1]"
            raise InvalidRequest(shape)
        body = struct.pack("<I", len(body)) + body
    elif _ANY in dims:
        dims[dims.index(_ANY)] = len(body) // max(1, fixed) // ELEMENT_BYTES.get(kind, 1)
    return Tensor(name=wanted.name, datatype=kind, shape=(*([1] if batched else ()), *dims), raw=body)
