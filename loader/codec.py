"""Dataclasses to JSON and back, strictly: an unknown key, a missing key or a value of another type is an error.

Understands str, int, float, bool, Literal, tuple[X, ...], Mapping[str, X] and dataclasses of those. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import StoreProtocolError


def to_json(kind: str, value: Any) -> bytes:
    """The dataclass `value` as a JSON object whose member "kind" says which dataclass it is."""
    return json.dumps({"kind": kind, **asdict(value)}, separators=(",", ":")).encode()


def from_json(payload: bytes, kinds: Mapping[str, type]) -> Any:
    """The dataclass that `payload` says it is, one of `kinds`. Raises StoreProtocolError."""
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise StoreProtocolError(f"a message is not JSON: {error}") from error
    kind = content.pop("kind", None) if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise StoreProtocolError(f"a message must have a kind out of {', '.join(sorted(kinds))}")
    return _build(kinds[kind], content, kind)


def _build(wanted: Any, value: Any, where: str) -> Any:
    origin = get_origin(wanted)
    if is_dataclass(wanted):
        return _build_dataclass(wanted, value, where)
    if origin is tuple:
        _check(isinstance(value, list), where, "a list")
        return tuple(_build(get_args(wanted)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        _check(value in get_args(wanted), where, f"one of {get_args(wanted)}")
        return value
    if origin is not None:
        _check(isinstance(value, dict), where, "an object")
        return {key: _build(get_args(wanted)[1], item, f"{where}.{key}") for key, item in value.items()}
    return _build_scalar(wanted, value, where)


def _build_scalar(wanted: Any, value: Any, where: str) -> Any:
    if wanted is float and type(value) is int:
        return float(value)
    _check(type(value) is wanted, where, wanted.__name__)
    return value


def _build_dataclass(wanted: Any, value: Any, where: str) -> Any:
    hints = _hints(wanted)
    _check(isinstance(value, dict) and value.keys() == hints.keys(), where, f"an object of {sorted(hints)}")
    return wanted(**{name: _build(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})


@cache
def _hints(wanted: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(wanted)
    return {field.name: hints[field.name] for field in fields(wanted)}


def _check(holds: bool, where: str, expected: str) -> None:
    if not holds:
        raise StoreProtocolError(f"message field {where} must be {expected}")
