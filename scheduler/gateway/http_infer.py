"""An infer request's body to KServe's message and back, with the binary tensor data extension.

A body is a JSON header, and after it the raw bytes of the tensors whose `binary_data_size` the header gives; the HTTP
header Inference-Header-Content-Length says where the JSON ends; a body without any is `http_raw.py`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.catalogue import ModelEntry
from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.http_raw import read_raw_body
from serverless_triton.scheduler.gateway.json_form import (
    as_flag,
    as_list,
    as_text,
    as_unsigned,
    elements_from_json,
    elements_to_json,
    member,
    members,
    parse_json,
    printable,
    set_parameters,
)
from serverless_triton.scheduler.gateway.shared_memory import no_region
from serverless_triton.scheduler.gateway.tensor_sizes import bounded_product
from serverless_triton.scheduler.gateway.tensors import ELEMENT_BYTES, Tensor, add_input, read_outputs

HEADER_LENGTH = "Inference-Header-Content-Length"
_LENGTH = re.compile(r"[+-]?[0-9]{1,18}")  # bounded before int() sees it, which refuses thousands of digits
_ONE_SOURCE = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferBody:
    """A parsed body: the request, and which outputs the client wants in binary."""

    request: pb.ModelInferRequest = field(repr=False)
    binary_outputs: Mapping[str, bool]
    binary_by_default: bool


def read_infer_body(body: bytes, header_length: str | None, entry: ModelEntry, version: str) -> InferBody:
    """Raises InvalidRequest in Triton's words."""
    header, binary = _split(body, header_length)
    if not header:
        request = read_raw_body(body, entry, version)
        return InferBody(request=request, binary_outputs={}, binary_by_default=True)
    value = parse_json(header)
    value = value if isinstance(value, dict) else {}
    request = pb.ModelInferRequest(model_name=entry.name, model_version=version, id=_id(value))
    parameters = _parameters(members(value.get("parameters", {}), "failed to get request params."))
    binary_by_default = parameters.pop("binary_data_output", False)
    set_parameters(request.parameters, parameters)
    inputs = as_list(member(value, "inputs", "Unable to parse 'inputs'"), "Unable to parse 'inputs'")
    _add_inputs(request, inputs, memoryview(binary))
    outputs = as_list(value.get("outputs", []), "Unable to parse 'outputs'")
    binary_outputs = _add_outputs(request, outputs, classifies=entry.foreign is not None)
    return InferBody(request=request, binary_outputs=binary_outputs, binary_by_default=binary_by_default)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    length = len(body) if header_length is None else _integer(header_length)
    if not 0 <= length <= len(body):
        raise InvalidRequest(
            f"inference header size should be in range (0, {len(body)}), got: {str(header_length)[:20]}"
        )
    return body[:length], body[length:]


def _integer(text: str) -> int:
    """As C's atoi reads a header: what is no number is 0."""
    found = _LENGTH.match(text)
    return int(found[0]) if found else 0


def _id(value: dict[str, Any]) -> str:
    return printable(value.get("id", ""), "Unable to parse 'id'")


def _parameters(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if name in _PARAMETERS:
            _PARAMETERS[name](value, f"Unable to parse '{name}'")
        elif name.startswith("triton_"):
            raise InvalidRequest(
                "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
            )
    return {name: _signed(value) if name == "sequence_id" else value for name, value in values.items()}


def _signed(sequence_id: Any) -> Any:
    """As KServe's message has it, whose numbers are signed; Triton reads them as unsigned again."""
    is_large = isinstance(sequence_id, int) and 2**63 <= sequence_id < 2**64
    return sequence_id - 2**64 if is_large else sequence_id


def _number_or_text(value: Any, what: str) -> object:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else as_text(value, what)


_PARAMETERS: dict[str, Callable[[Any, str], object]] = {
    "sequence_id": _number_or_text,
    "sequence_start": as_flag,
    "sequence_end": as_flag,
    "priority": as_unsigned,
    "timeout": as_unsigned,
    "binary_data_output": as_flag,
}


def _add_inputs(request: pb.ModelInferRequest, items: list[Any], binary: memoryview) -> None:
    at = 0
    for item in items:
        fields = item if isinstance(item, dict) else {}
        parameters = _parameters_of(fields)
        _check_source(fields, parameters)
        name, datatype, shape = _text(fields, "name"), _text(fields, "datatype"), _shape(fields)
        if "shared_memory_region" in parameters:
            raise no_region(as_text(parameters["shared_memory_region"], "Unable to parse 'shared_memory_region'"))
        if datatype != "BYTES" and datatype not in ELEMENT_BYTES:
            raise InvalidRequest(f"invalid datatype for input {name[:128]}")
        if "binary_data_size" in parameters:
            size = as_unsigned(parameters["binary_data_size"], "Unable to parse 'binary_data_size'")
            raw = _raw_from_binary(name, binary[at:], size, request.model_name)
            at += size
        else:
            raw = _raw_from_json(name, datatype, shape, as_list(fields["data"], "Unable to parse 'data'"))
        add_input(request, Tensor(name=name, datatype=datatype, shape=shape, raw=raw))
    if at != len(binary):
        raise InvalidRequest(f"unexpected additional input data for model '{request.model_name}'")


def _parameters_of(item: dict[str, Any]) -> dict[str, Any]:
    """Of an input or output; Triton finds nothing in what is no object."""
    found = item.get("parameters", {})
    return found if isinstance(found, dict) else {}


def _check_source(item: dict[str, Any], parameters: dict[str, Any]) -> None:
    found = ["'data'"] if "data" in item else []
    found += [f"'{name}'" for name in ("binary_data_size", "shared_memory_region") if name in parameters]
    if len(found) != 1:
        raise InvalidRequest(_ONE_SOURCE + (f" set {' '.join(found)}" if found else " no field is set"))


def _text(item: dict[str, Any], name: str) -> str:
    what = f"Unable to parse '{name}'"
    return printable(member(item, name, what), what)


def _shape(item: dict[str, Any]) -> tuple[int, ...]:
    what = "Unable to parse 'shape'"
    shape = tuple(as_unsigned(size, what) for size in as_list(member(item, "shape", what), what))
    if any(size >= 2**63 for size in shape):
        raise InvalidRequest(f"{what}: a dimension is 2^63 or more")
    return shape


def _raw_from_json(name: str, datatype: str, shape: tuple[int, ...], data: list[Any]) -> bytes:
    if 0 in shape:
        return b""
    raw, count = elements_from_json(name, datatype, data)
    if datatype != "BYTES" and count != bounded_product(shape, count):
        raise InvalidRequest("Unable to parse 'data': Shape does not match true shape of 'data' field")
    return raw


def _raw_from_binary(name: str, binary: memoryview, size: int, model: str) -> bytes:
    if size > len(binary):
        raise InvalidRequest(
            f"unexpected size for input '{name[:128]}', expecting {size - len(binary)} additional bytes for model "
            f"'{model}'"
        )
    return bytes(binary[:size])


def _add_outputs(request: pb.ModelInferRequest, items: list[Any], *, classifies: bool) -> dict[str, bool]:
    binary: dict[str, bool] = {}
    for item in items:
        fields = item if isinstance(item, dict) else {}
        name, parameters = _text(fields, "name"), _parameters_of(fields)
        classes = as_unsigned(parameters.get("classification", 0), "Unable to set 'classification'")
        if classes and not classifies:
            raise InvalidRequest(f"output '{name[:128]}': classification is not supported")
        if "shared_memory_region" in parameters:
            raise no_region(as_text(parameters["shared_memory_region"], "Unable to parse 'shared_memory_region'"))
        output = request.outputs.add(name=name)
        if classes:
            set_parameters(output.parameters, {"classification": classes})
        if "binary_data" in parameters:
            binary[name] = as_flag(parameters["binary_data"], "Unable to parse 'binary_data'")
    return binary


def write_infer_body(response: pb.ModelInferResponse, asked: InferBody) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where binary data follows it."""
    header: dict[str, Any] = {"id": response.id} if response.id else {}
    header |= {"model_name": response.model_name, "model_version": response.model_version}
    if response.parameters:
        header["parameters"] = {name: _value(parameter) for name, parameter in sorted(response.parameters.items())}
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


def _value(parameter: pb.InferParameter) -> object:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)
