"""Triton's generate extension: flat JSON to a request and back.

A key that names an input is that tensor, `id` is the request's id, `parameters` and every other key are request
parameters.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.catalogue import ModelEntry, datatype
from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.json_form import (
    as_object,
    elements_from_json,
    elements_to_json,
    members,
    parse_json,
    printable,
    set_parameters,
)
from serverless_triton.scheduler.gateway.notices import RECEIPT, notices
from serverless_triton.scheduler.gateway.tensors import Tensor, add_input, read_outputs


def read_generate_body(body: bytes, entry: ModelEntry, version: str) -> pb.ModelInferRequest:
    """Raises InvalidRequest in Triton's words."""
    value = members(parse_json(body))
    request = pb.ModelInferRequest(model_name=entry.name, model_version=version, id=_id(value))
    inputs = {tensor.name: tensor for tensor in entry.config.input}
    nested = as_object(value.get("parameters", {}), "Expected JSON object for keyword: 'parameters'")
    set_parameters(request.parameters, nested, prefix="Converting keyword: 'parameters': ")
    flat = {name: item for name, item in value.items() if name not in inputs and name not in ("id", "parameters")}
    set_parameters(request.parameters, flat)
    for name in value.keys() & inputs.keys():
        tensor = _tensor(name, datatype(inputs[name]), list(inputs[name].dims), value[name])
        add_input(request, replace(tensor, shape=(1, *tensor.shape)) if entry.config.max_batch_size else tensor)
    return request


def _id(value: dict[str, Any]) -> str:
    return printable(value.get("id", ""), "Unable to parse 'id'")


def _tensor(name: str, kind: str, dims: list[int], value: Any) -> Tensor:
    raw, count = elements_from_json(name, kind, value)
    if dims not in ([-1], [count]):
        raise InvalidRequest(f"The schema can not convert input '{name}' to tensor with proper shape")
    return Tensor(name=name, datatype=kind, shape=(count,), raw=raw)


def write_generate_body(response: pb.ModelInferResponse) -> dict[str, Any]:
    """One JSON object; an output of one element is no list."""
    body: dict[str, Any] = {"id": response.id} if response.id else {}
    body |= {"model_name": response.model_name, "model_version": response.model_version, **notices(response)}
    if RECEIPT in body:
        body[RECEIPT] = json.loads(body[RECEIPT])
    for name, tensor in sorted(read_outputs(response).items()):
        elements = elements_to_json(tensor)
        body[name] = elements[0] if len(elements) == 1 else elements
    return body
