"""An infer request's body to KServe's message and back, with the binary tensor data extension.

A body is a JSON header, and after it the raw bytes of the tensors whose `binary_data_size` the header gives; the HTTP
header Inference-Header-Content-Length says where the JSON ends.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.json_form import (
    elements_from_json,
    elements_to_json,
    members,
    parse_json,
    set_parameters,
)
from serverless_triton.scheduler.gateway.tensors import ELEMENT_BYTES, Tensor, add_input, read_outputs

HEADER_LENGTH = "Inference-Header-Content-Length"
_LENGTH = re.compile(r"[0-9]{1,18}")  # bounded before int() sees it, which refuses thousands of digits
_ONE_SOURCE = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But {} set"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferBody:
    """A parsed body: the request, and which outputs the client wants in binary."""

    request: pb.ModelInferRequest = field(repr=False)
    binary_outputs: Mapping[str, bool]
    binary_by_default: bool


def read_infer_body(body: bytes, header_length: str | None, model: str, version: str) -> InferBody:
    """Raises InvalidRequest in Triton's words."""
    header, binary = _split(body, header_length)
    value = parse_json(header)
    if not isinstance(value, dict) or "inputs" not in value:
        raise InvalidRequest("Unable to parse 'inputs': attempt to access non-existing object member 'inputs'")
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=_text(value, "id", ""))
    parameters = dict(members(value.get("parameters", {}), "failed to get request params."))
    binary_by_default = parameters.pop("binary_data_output", False) is True
    set_parameters(request.parameters, parameters)
    _add_inputs(request, _items(value, "inputs"), memoryview(binary))
    binary_outputs = _add_outputs(request, _items(value, "outputs"))
    return InferBody(request=request, binary_outputs=binary_outputs, binary_by_default=binary_by_default)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    length = int(header_length) if _LENGTH.fullmatch(header_length) else -1
    if not 0 < length <= len(body):
        raise InvalidRequest(f"inference header size should be in range (0, {len(body)}), got: {header_length[:20]}")
    return body[:length], body[length:]


def _items(value: dict[str, Any], name: str) -> list[dict[str, Any]]:
    items = value.get(name, [])
    if not isinstance(items, list):
        raise InvalidRequest(f"Unable to parse '{name}': attempt to access JSON non-array as array")
    return [members(item, f"Unable to parse '{name}'") for item in items]


def _text(value: dict[str, Any], name: str, default: str | None = None) -> str:
    found = value.get(name, default)
    if found is None:
        raise InvalidRequest(f"Unable to parse '{name}': attempt to access non-existing object member '{name}'")
    if not isinstance(found, str) or not found.isprintable():
        raise InvalidRequest(f"Unable to parse '{name}': attempt to access JSON non-string as string")
    return found


def _add_inputs(request: pb.ModelInferRequest, items: list[dict[str, Any]], binary: memoryview) -> None:
    at = 0
    for item in items:
        parameters = members(item.get("parameters", {}), "Unable to parse 'parameters'")
        size = parameters.get("binary_data_size")
        _check_source(item, parameters)
        name, datatype, shape = _text(item, "name"), _text(item, "datatype"), _shape(item)
        if datatype != "BYTES" and datatype not in ELEMENT_BYTES:
            raise InvalidRequest(f"invalid datatype for input {name[:128]}")
        if size is None:
            raw = _raw_from_json(name, datatype, shape, item["data"])
        else:
            raw, at = _raw_from_binary(name, binary, at, size)
        add_input(request, Tensor(name=name, datatype=datatype, shape=shape, raw=raw))
    if at != len(binary):
        raise InvalidRequest(f"unexpected additional input data: {len(binary) - at} bytes belong to no input")


def _check_source(item: dict[str, Any], parameters: dict[str, Any]) -> None:
    if "shared_memory_region" in parameters:
        raise InvalidRequest("inputs in shared memory are not supported by this server")
    sources = ("data" in item) + ("binary_data_size" in parameters)
    if sources != 1:
        raise InvalidRequest(_ONE_SOURCE.format("no field is" if sources == 0 else "more than one is"))


def _shape(item: dict[str, Any]) -> tuple[int, ...]:
    shape = item.get("shape")
    if not isinstance(shape, list):
        raise InvalidRequest("Unable to parse 'shape': attempt to access JSON non-array as array")
    if any(not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63 for size in shape):
        raise InvalidRequest("Unable to parse 'shape': attempt to access JSON non-unsigned-integer as unsigned-integer")
    return tuple(shape)


def _raw_from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> bytes:
    raw, count = elements_from_json(name, datatype, data)
    if datatype != "BYTES" and count != math.prod(shape):
        raise InvalidRequest(
            f"Unable to parse 'data' of input '{name[:128]}': Shape does not match true shape of 'data' field"
        )
    return raw


def _raw_from_binary(name: str, binary: memoryview, at: int, size: Any) -> tuple[bytes, int]:
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(binary) - at:
        raise InvalidRequest(
            f"unexpected size for input '{name[:128]}', expecting {len(binary) - at} additional bytes for model"
        )
    return bytes(binary[at : at + size]), at + size


def _add_outputs(request: pb.ModelInferRequest, items: list[dict[str, Any]]) -> dict[str, bool]:
    binary: dict[str, bool] = {}
    for item in items:
        name = _text(item, "name")
        parameters = members(item.get("parameters", {}), "Unable to parse 'parameters'")
        if parameters.get("classification") or "shared_memory_region" in parameters:
            raise InvalidRequest(f"output '{name[:128]}': classification and shared memory are not supported")
        request.outputs.add(name=name)
        if "binary_data" in parameters:
            binary[name] = parameters["binary_data"] is True
    return binary


def write_infer_body(response: pb.ModelInferResponse, asked: InferBody) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where binary data follows it."""
    header: dict[str, Any] = {"id": response.id} if response.id else {}
    header |= {"model_name": response.model_name, "model_version": response.model_version}
    header["parameters"] = {"stream_id": response.parameters["stream_id"].string_param}
    header["outputs"], binary = [], []
    for tensor in read_outputs(response).values():
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if asked.binary_outputs.get(tensor.name, asked.binary_by_default):
            output["parameters"] = {"binary_data_size": len(tensor.raw)}
            binary.append(tensor.raw)
        else:
            output["data"] = elements_to_json(tensor)
        header["outputs"].append(output)
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([text, *binary]), len(text) if binary else None
