"""JSON as Triton's HTTP side writes and reads it: KServe's messages, tensors' elements, request parameters.

protobuf's own JSON writes 64-bit numbers as strings; Triton writes numbers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.json_words import rapid_words
from serverless_triton.scheduler.gateway.tensors import Tensor, pack, split_strings

_Kind = TypeVar("_Kind")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "BOOL": ((bool,), "boolean"),
    "FP32": ((int, float), "number"),
    "FP64": ((int, float), "number"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32", "UINT64"), ((int,), "unsigned-integer")),
    **dict.fromkeys(("INT8", "INT16", "INT32", "INT64"), ((int,), "signed-integer")),
}


def message_to_json(message: Message) -> dict[str, Any]:
    """Every field, unset ones as their default, except unset messages and the unset members of a oneof."""
    return {
        field.name: _field_to_json(message, field) for field in message.DESCRIPTOR.fields if _is_written(message, field)
    }


def _is_written(message: Message, field: Any) -> bool:
    return not field.has_presence or bool(message.HasField(field.name))


def _field_to_json(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        item = kind.fields_by_name["value"]
        return {str(key): _value_to_json(item, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_value_to_json(field, item) for item in value]
    return _value_to_json(field, value)


def _value_to_json(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return message_to_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else int(value)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def parse_json(body: bytes) -> Any:
    """Raises InvalidRequest."""
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"failed to parse the request JSON buffer: {_where(error)}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _where(error: Exception) -> str:
    """What is wrong and where, without what the client wrote there."""
    if isinstance(error, json.JSONDecodeError):
        return rapid_words(error)
    return str(error) if isinstance(error, ValueError) and not isinstance(error, UnicodeError) else type(error).__name__


def members(value: Any, what: str = "") -> dict[str, Any]:
    """An object to be gone through. Raises InvalidRequest in Triton's words, as all of these."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{_colon(what)}attempt to get members for non-object")
    return value


def as_object(value: Any, what: str = "") -> dict[str, Any]:
    return _as(value, dict, "object", what)


def as_list(value: Any, what: str = "") -> list[Any]:
    return _as(value, list, "array", what)


def as_text(value: Any, what: str = "") -> str:
    return _as(value, str, "string", what)


def printable(value: Any, what: str) -> str:
    """A text that may stand in a log and in an error."""
    if not isinstance(value, str) or not value.isprintable():
        raise _no("string", what)
    return value


def as_flag(value: Any, what: str = "") -> bool:
    return _as(value, bool, "boolean", what)


def as_unsigned(value: Any, what: str = "") -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise _no("unsigned-integer", what)
    return value


def member(value: Mapping[str, Any], name: str, what: str = "") -> Any:
    if name not in value:
        raise InvalidRequest(f"{_colon(what)}attempt to access non-existing object member '{name}'")
    return value[name]


def _as(value: Any, kind: type[_Kind], word: str, what: str) -> _Kind:
    if not isinstance(value, kind):
        raise _no(word, what)
    return value


def _no(word: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{_colon(what)}attempt to access JSON non-{word} as {word}")


def _colon(what: str) -> str:
    return f"{what}: " if what else ""


def set_parameters(target: Mapping[str, pb.InferParameter], values: Mapping[str, Any], prefix: str = "") -> None:
    """Request parameters from JSON. Raises InvalidRequest."""
    for name, value in values.items():
        _utf8(name, f"{prefix}a parameter's name")
        _set_parameter(target[name], name, value, prefix)


def _set_parameter(parameter: pb.InferParameter, name: str, value: Any, prefix: str) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int) and -(2**63) <= value < 2**63:
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    elif isinstance(value, str):
        parameter.string_param = _utf8(value, f"parameter '{name[:128]}'").decode()
    else:
        raise InvalidRequest(
            f"{prefix}parameter '{name[:128]}' has invalid type. It should be either 'int', 'bool', or 'string'."
        )


def elements_from_json(name: str, datatype: str, data: Any) -> tuple[bytes, int]:
    """Raw bytes and number of a tensor's elements, however they are nested. Raises InvalidRequest naming the tensor."""
    flat = list(_flatten(data))
    if datatype == "BYTES":
        return pack("BYTES", [_string(name, value) for value in flat]), len(flat)
    kinds, word = _KINDS.get(datatype, ((), ""))
    if not kinds:
        raise InvalidRequest(
            f"receiving {datatype[:16]} data via JSON is not supported. Please use the binary data format for input "
            f"{name[:128]}"
        )
    for value in flat:
        if not isinstance(value, kinds) or (isinstance(value, bool) and datatype != "BOOL"):
            raise _no(word, "Unable to parse 'data'")
    try:
        return pack(datatype, flat), len(flat)
    except (struct.error, OverflowError) as error:
        raise InvalidRequest(
            f"Unable to parse 'data' of input '{name[:128]}': a value does not fit {datatype}"
        ) from error


def _flatten(data: Any) -> Iterator[Any]:
    """Depth first without recursion: a client decides how deep its lists are."""
    pending = [iter([data])]
    while pending:
        item = next(pending[-1], pending)
        if item is pending:
            pending.pop()
        elif isinstance(item, list):
            pending.append(iter(item))
        else:
            yield item


def _string(name: str, value: Any) -> bytes:
    return _utf8(as_text(value, "Unable to parse JSON bytes array"), f"input '{name[:128]}'")


def _utf8(value: str, what: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair
        raise InvalidRequest(f"{what} is not Unicode text at character {error.start}") from error


def elements_to_json(tensor: Tensor) -> Sequence[Any]:
    """A tensor's elements as a flat list; strings that are no UTF-8 have replacement characters.

    Raises InvalidRequest in Triton's words for what JSON has no numbers for.
    """
    if tensor.datatype in ("FP16", "BF16"):
        raise InvalidRequest(
            f"sending {tensor.datatype} data via JSON is not supported. Please use the binary data format for output "
            f"{tensor.name}"
        )
    if tensor.datatype == "BYTES":
        return [value.decode(errors="replace") for value in split_strings(tensor.raw)]
    return list(tensor.numbers())
