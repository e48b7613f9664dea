"""Triton's trace and log settings, which a client may read, and set to what they are.

Nothing is traced here, and a gateway logs as it was told when it started. So settings that ask for a change are refused
in the words of a Triton that was built without it, once they are found to be sound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.json_form import as_flag, as_list, as_text, as_unsigned

TRACE: Mapping[str, tuple[str, ...]] = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    "trace_file": ("",),
    "trace_mode": ("triton",),
}
LOG: Mapping[str, bool | int | str] = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}
# What is asked for, by setting; None: its default.
TraceChange = Mapping[str, tuple[str, ...] | None]
LogChange = Mapping[str, bool | int | str]

_LEVELS = ("OFF", "TIMESTAMPS", "TENSORS")
_FORMATS = ("default", "ISO8601")
_NUMBER = re.compile(r"\s*([+-]?[0-9]+)")
_INT32 = range(-(2**31), 2**31)
_RANGES = {"trace_rate": (0, 2**32 - 1), "trace_count": (-1, 2**31 - 1), "log_frequency": (0, 2**32 - 1)}
_LEAST_COUNT = -1


class Unavailable(InvalidRequest):
    """A setting that cannot be changed here."""

    code = "UNAVAILABLE"


class FixedFile(InvalidRequest):
    """A file of the server's that a client may not name."""

    code = "UNIMPLEMENTED"


def check_trace(change: TraceChange, refusal: str) -> None:
    """Raises Unavailable with these words where something would be another than it is."""
    if any(values is not None and values != TRACE[name] for name, values in change.items()):
        raise Unavailable(refusal)


def check_log(change: LogChange) -> None:
    if any(value != LOG[name] for name, value in change.items()):
        raise Unavailable("the server does not support dynamic logging")


def trace_from_json(fields: Mapping[str, Any]) -> TraceChange:
    """Raises InvalidRequest in Triton's words, as all of these; a setting that nobody knows is nothing."""
    if "trace_file" in fields:
        raise FixedFile("trace file location can not be updated through network protocol")
    change: dict[str, tuple[str, ...] | None] = {}
    if "trace_level" in fields:
        levels = fields["trace_level"]
        change["trace_level"] = None if levels is None else _levels([as_text(level) for level in as_list(levels)])
    for name in (name for name in _RANGES if name in fields):
        text = fields[name]
        change[name] = None if text is None else _number(name, as_text(text), ", got:")
    return change


def trace_from_message(settings: Mapping[str, pb.TraceSettingRequest.SettingValue]) -> TraceChange:
    change: dict[str, tuple[str, ...] | None] = {}
    for name in (name for name in TRACE if name in settings):
        values = tuple(settings[name].value)
        if name == "trace_file":
            raise FixedFile("trace file location can not be updated through network protocol")
        if name == "trace_level":
            change[name] = _levels(values) if values else None
        elif name in _RANGES:
            if len(values) > 1:
                raise InvalidRequest(f"expect only 1 value for '{name}'")
            change[name] = _number(name, values[0], ", got: ") if values else None
    return change


def _levels(levels: Sequence[str]) -> tuple[str, ...] | None:
    if "OFF" in levels and len(levels) > 1:
        raise InvalidRequest("Expect only one trace level 'OFF' is specified")
    return tuple(level for level in levels if level in _LEVELS) or None


def _number(name: str, text: str, got: str) -> tuple[str, ...]:
    """As C's stoi reads it: what follows a number does not matter."""
    found = _NUMBER.match(text[:64])
    if found is None:
        raise InvalidRequest(f"Unable to parse '{name}', got: {text[:64]}")
    value = int(found[1])
    if value not in _INT32:
        least, most = _RANGES[name]
        raise InvalidRequest(f"Unable to parse '{name}', value is out of range [ {least}, {most} ], got: {text[:64]}")
    if name == "trace_count" and value < _LEAST_COUNT:
        raise InvalidRequest(f"Unable to parse '{name}'. Expecting value >= {_LEAST_COUNT}{got}{text[:64]}")
    return (str(value),)


def log_from_json(fields: Mapping[str, Any]) -> LogChange:
    given = {name: fields[name] for name in LOG if fields.get(name) is not None}
    if "log_file" in given:
        raise FixedFile("log file location can not be updated through network protocol")
    change: dict[str, bool | int | str] = {}
    for name, value in given.items():
        change[name] = _log_value(name, value)
    if change.get("log_format", "default") not in _FORMATS:
        raise Unavailable(f"invalid argument for --log_format, got: {str(change['log_format'])[:64]}")
    return change


def _log_value(name: str, value: Any) -> bool | int | str:
    kind = type(LOG[name])
    return as_flag(value) if kind is bool else as_unsigned(value) if kind is int else as_text(value)


def log_from_message(settings: Mapping[str, pb.LogSettingsRequest.SettingValue]) -> LogChange:
    change: dict[str, bool | int | str] = {}
    for name in (name for name in LOG if name in settings):
        if name == "log_file":
            raise FixedFile("log file location can not be updated through network protocol")
        kind, word = _MESSAGE_KINDS[type(LOG[name])]
        if settings[name].WhichOneof("parameter_choice") != kind:
            raise InvalidRequest(f"expect {word} for '{name}'")
        change[name] = getattr(settings[name], kind)
    if change.get("log_format", "default") not in _FORMATS:
        raise InvalidRequest(f"invalid argument for log_format, got: {str(change['log_format'])[:64]}")
    return change


_MESSAGE_KINDS = {bool: ("bool_param", "boolean"), int: ("uint32_param", "int32"), str: ("string_param", "string")}
