"""Tensors in KServe's messages: found, checked against a model's configuration in Triton's words, and written.

Whatever form a client chose (raw or typed contents), a tensor leaves here as raw bytes: little-endian elements, and for
BYTES a 4-byte length before each. What the tensors mean is `request.py`'s.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.catalogue import ModelEntry, datatype
from serverless_triton.scheduler.errors import InvalidRequest

ELEMENT_BYTES = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8,
}  # fmt: skip
_STRUCT_CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP32": "f", "FP64": "d",
}  # fmt: skip
# The typed field of InferTensorContents that carries a datatype, and what Triton calls data found in it.
TYPED_FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
_FIELD_DATATYPES = {
    "bool_contents": "BOOL", "int_contents": "INT32", "int64_contents": "INT64", "uint_contents": "UINT32",
    "uint64_contents": "UINT64", "fp32_contents": "FP32", "fp64_contents": "FP64", "bytes_contents": "BYTES",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor by value. `raw` is Triton's binary form of `math.prod(shape)` elements."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes = field(repr=False)  # may be a prompt

    def strings(self) -> list[bytes]:
        return list(split_strings(self.raw))

    def numbers(self) -> tuple[float, ...]:
        return struct.unpack(
            f"<{len(self.raw) // ELEMENT_BYTES[self.datatype]}{_STRUCT_CODES[self.datatype]}", self.raw
        )

    def flag(self) -> bool:
        return any(self.raw)


def read_inputs(request: pb.ModelInferRequest, entry: ModelEntry) -> dict[str, Tensor]:
    """The request's inputs by name, each one that the model takes. Raises InvalidRequest in Triton's words."""
    tensors: dict[str, Tensor] = {}
    expected = {tensor.name: tensor for tensor in entry.config.input}
    found = list(zip(request.inputs, _raw_contents(request, entry), strict=True))
    for tensor, _ in found:
        if tensor.name not in expected:
            raise InvalidRequest(f"unexpected inference input '{tensor.name[:128]}' for model '{entry.name}'")
    for tensor, raw in found:
        if tensor.name in tensors:
            raise refusal(request.id, f"input '{tensor.name}' already exists in request")
        tensors[tensor.name] = Tensor(name=tensor.name, datatype=tensor.datatype, shape=tuple(tensor.shape), raw=raw)
    _check_all_there(request.id, tensors, entry)
    for tensor in tensors.values():
        _check(request.id, tensor, expected[tensor.name], entry)
    return tensors


def check_outputs(request: pb.ModelInferRequest, entry: ModelEntry) -> frozenset[str]:
    """The outputs the client listed; empty means the usual ones. Raises InvalidRequest."""
    known = {tensor.name for tensor in entry.config.output}
    for output in request.outputs:
        if output.name not in known:
            raise InvalidRequest(f"unexpected inference output '{output.name[:128]}' for model '{entry.name}'")
    return frozenset(output.name for output in request.outputs)


def refusal(request_id: str, message: str) -> InvalidRequest:
    """As Triton begins what it says of a request that it has read."""
    return InvalidRequest(f"[request id: {request_id[:128] or '<id_unknown>'}] {message}")


def _raw_contents(request: pb.ModelInferRequest, entry: ModelEntry) -> list[bytes]:
    if not request.raw_input_contents:
        return [_typed_contents(tensor, entry) for tensor in request.inputs]
    for index, tensor in enumerate(request.inputs):
        if tensor.HasField("contents"):
            raise InvalidRequest(
                "contents field must not be specified when using raw_input_contents for "
                f"'{tensor.name[:128]}' for model '{entry.name}'"
            )
        if index >= len(request.raw_input_contents):
            raise _no_data(tensor, entry)
    return list(request.raw_input_contents[: len(request.inputs)])


def _no_data(tensor: pb.ModelInferRequest.InferInputTensor, entry: ModelEntry) -> InvalidRequest:
    return InvalidRequest(
        f"unable to find data for input tensor '{tensor.name[:128]}' for model '{entry.name}' in request."
    )


def _typed_contents(tensor: pb.ModelInferRequest.InferInputTensor, entry: ModelEntry) -> bytes:
    filled = [field.name for field, values in tensor.contents.ListFields() if values]
    if not filled and 0 in tensor.shape:
        return b""
    if not filled:
        raise _no_data(tensor, entry)
    for name in filled:
        if name != TYPED_FIELDS.get(tensor.datatype):
            raise InvalidRequest(
                f"unexpected explicit tensor data for input tensor '{tensor.name[:128]}' for model '{entry.name}' of "
                f"type '{_FIELD_DATATYPES[name]}', expected datatype '{tensor.datatype[:16]}'"
            )
    try:
        return pack(tensor.datatype, getattr(tensor.contents, filled[0]))
    except (struct.error, OverflowError) as error:
        raise InvalidRequest(
            f"explicit tensor data of input tensor '{tensor.name[:128]}' for model '{entry.name}' does not fit "
            f"datatype '{tensor.datatype}': {error}"
        ) from error


def _check_all_there(request_id: str, tensors: Mapping[str, Tensor], entry: ModelEntry) -> None:
    required = [tensor.name for tensor in entry.config.input if not tensor.optional]
    missing = [name for name in required if name not in tensors]
    if missing:
        least, most = len(required), len(entry.config.input)
        expected = f"between {least} and {most}" if least != most else str(most)
        raise refusal(
            request_id,
            f"expected number of inputs {expected} but got {len(tensors)} inputs for model '{entry.name}'. "
            f"Got input(s) [{_quoted(tensors)}], but missing required input(s) [{_quoted(missing)}]. "
            "Please provide all required input(s).",
        )


def _quoted(names: Mapping[str, Tensor] | Sequence[str]) -> str:
    return ",".join(f"'{name}'" for name in sorted(names))


def _check(request_id: str, tensor: Tensor, expected: pb.ModelInferRequest.InferInputTensor, entry: ModelEntry) -> None:
    if tensor.datatype != datatype(expected):
        said = tensor.datatype if tensor.datatype in ELEMENT_BYTES or tensor.datatype == "BYTES" else "<invalid>"
        raise refusal(
            request_id,
            f"inference input '{tensor.name}' data-type is '{said}', but model '{entry.name}' expects "
            f"'{datatype(expected)}'",
        )
    if any(size < 0 for size in tensor.shape):
        raise unspecified_dims(request_id, tensor.name, tensor.shape, entry)
    if len(tensor.shape) != len(expected.dims) or any(
        want not in (-1, size) for want, size in zip(expected.dims, tensor.shape, strict=True)
    ):
        raise refusal(
            request_id,
            f"unexpected shape for input '{tensor.name}' for model '{entry.name}'. Expected {dims(expected.dims)}, "
            f"got {dims(tensor.shape)}. ",
        )
    _check_size(request_id, tensor, entry)


def unspecified_dims(request_id: str, name: str, shape: Sequence[int], entry: ModelEntry) -> InvalidRequest:
    return refusal(
        request_id,
        f"All input dimensions should be specified for input '{name[:128]}' for model '{entry.name}', got "
        f"{dims(shape)}",
    )


def size_mismatch(request_id: str, name: str, wanted: int, found: int, entry: ModelEntry) -> InvalidRequest:
    return refusal(
        request_id,
        f"input byte size mismatch for input '{name[:128]}' for model '{entry.name}'. Expected {wanted}, got {found}",
    )


def dims(shape: Sequence[int]) -> str:
    """In Triton's words."""
    return f"[{','.join(str(size) for size in shape[:16])}]"


def _check_size(request_id: str, tensor: Tensor, entry: ModelEntry) -> None:
    count = math.prod(tensor.shape)
    if tensor.datatype == "BYTES":
        _check_strings(request_id, tensor, count, entry)
    elif len(tensor.raw) != count * ELEMENT_BYTES[tensor.datatype]:
        raise size_mismatch(request_id, tensor.name, count * ELEMENT_BYTES[tensor.datatype], len(tensor.raw), entry)


def _check_strings(request_id: str, tensor: Tensor, count: int, entry: ModelEntry) -> None:
    where = f"for inference input '{tensor.name}'"
    of_model = f"{where} for model '{entry.name}'"
    try:
        found = sum(1 for _ in islice(split_strings(tensor.raw), count + 1))
    except _IncompleteLength as error:
        raise refusal(request_id, error.words(of_model)) from error
    except _IncompleteString as error:
        raise InvalidRequest(error.words(where)) from error
    if found > count:
        raise refusal(request_id, f"unexpected number of string elements {found} {of_model}, expecting {count}")
    if found < count:
        raise refusal(request_id, f"expected {count} string elements {of_model}, got {found}")


class _IncompleteLength(ValueError):
    """Bytes end inside a length."""

    def __init__(self, available: int) -> None:
        super().__init__("incomplete string length")
        self._available = available

    def words(self, where: str) -> str:
        return (
            f"incomplete string length indicator {where}, expecting 4 bytes but only {self._available} bytes "
            "available. Please make sure the string length indicator is in one buffer."
        )


class _IncompleteString(ValueError):
    """Bytes end inside a string."""

    def __init__(self, wanted: int, available: int) -> None:
        super().__init__("incomplete string data")
        self._wanted, self._available = wanted, available

    def words(self, where: str) -> str:
        return (
            f"incomplete string data {where}, expecting string of length {self._wanted} but only {self._available} "
            "bytes available"
        )


def split_strings(raw: bytes) -> Iterator[bytes]:
    """The elements of a BYTES tensor. Raises ValueError where the bytes end inside one."""
    at = 0
    while at < len(raw):
        if len(raw) - at < 4:
            raise _IncompleteLength(len(raw) - at)
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if len(raw) - at < length:
            raise _IncompleteString(length, len(raw) - at)
        yield raw[at : at + length]
        at += length


def pack(kind: str, values: Sequence[Any]) -> bytes:
    """Raw bytes of a tensor's elements. Raises struct.error where a value does not fit."""
    if kind == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return struct.pack(f"<{len(values)}{_STRUCT_CODES[kind]}", *values)


def string_tensor(name: str, value: bytes) -> Tensor:
    return Tensor(name=name, datatype="BYTES", shape=(1,), raw=pack("BYTES", [value]))


def number_tensor(name: str, kind: str, values: Sequence[float]) -> Tensor:
    return Tensor(name=name, datatype=kind, shape=(len(values),), raw=pack(kind, values))


def read_outputs(response: pb.ModelInferResponse) -> dict[str, Tensor]:
    """A server's outputs by name; Triton always answers with raw contents."""
    return {
        output.name: Tensor(name=output.name, datatype=output.datatype, shape=tuple(output.shape), raw=raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def raw_outputs(response: pb.ModelInferResponse) -> dict[str, bytes]:
    """Only the bytes of a server's outputs by name: what the relay reads of every message."""
    names = [output.name for output in response.outputs]
    return dict(zip(names, response.raw_output_contents, strict=True))


def read_request_tensors(request: pb.ModelInferRequest) -> dict[str, Tensor]:
    """The inputs of a request that was built here, unchecked."""
    return {
        tensor.name: Tensor(name=tensor.name, datatype=tensor.datatype, shape=tuple(tensor.shape), raw=raw)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def add_input(request: pb.ModelInferRequest, tensor: Tensor) -> None:
    request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    request.raw_input_contents.append(tensor.raw)


def add_output(response: pb.ModelInferResponse, tensor: Tensor) -> None:
    response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    response.raw_output_contents.append(tensor.raw)
