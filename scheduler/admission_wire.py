"""What crosses between a gateway and a leader elsewhere, to messages of admission.proto and back. Pure."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from serverless_triton.scheduler import admission_pb2, errors
from serverless_triton.scheduler.admission import Assignment, Outlook, StartRecord
from serverless_triton.scheduler.errors import LoadFailed, SchedulerError
from serverless_triton.scheduler.identity import Caller, ModelRule

T = TypeVar("T")


def pack_assignment(assignment: Assignment, received_s: float) -> str:
    """JSON. The spans' times count from `received_s` on the leader's clock."""
    told = assignment if assignment.start is None else replace(assignment, start=_moved(assignment.start, -received_s))
    return json.dumps({f.name: plain(getattr(told, f.name)) for f in fields(told) if f.name != "lost"})


def read_assignment(text: str, sent_s: float, lost: asyncio.Future[str]) -> Assignment:
    """`sent_s` is when the request was sent, on our clock."""
    assignment = built(Assignment, {**json.loads(text), "lost": lost})
    return assignment if assignment.start is None else replace(assignment, start=_moved(assignment.start, sent_s))


def pack_outlook(outlook: Outlook) -> str:
    return json.dumps(plain(outlook))


def read_outlook(text: str) -> Outlook:
    return built(Outlook, json.loads(text))


def pack_caller(caller: Caller) -> admission_pb2.Asker:
    """What matters to the leader: rights and quotas are the gateway's."""
    return admission_pb2.Asker(tenant=caller.tenant, models=caller.models.patterns, weight=caller.weight)


def read_caller(asker: admission_pb2.Asker) -> Caller:
    return Caller(tenant=asker.tenant, models=ModelRule(patterns=tuple(asker.models)), weight=asker.weight)


def pack_trouble(error: SchedulerError) -> admission_pb2.Trouble:
    return admission_pb2.Trouble(
        kind=type(error).__name__, code=error.code, message=str(error), retry_after_s=error.retry_after_s
    )


def read_trouble(trouble: admission_pb2.Trouble) -> SchedulerError:
    """Of the same kind, where that says no more than its message; else one of its code."""
    retry_after_s = trouble.retry_after_s if trouble.HasField("retry_after_s") else None
    kind = getattr(errors, trouble.kind, None)
    if kind is LoadFailed or kind is None or kind is errors.RateLimited:
        return LoadFailed(trouble.message, trouble.code, retry_after_s=retry_after_s)
    error: SchedulerError = kind(trouble.message, retry_after_s=retry_after_s)
    return error


def plain(value: Any) -> Any:
    """As `json.dumps` takes it."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return value


def built(kind: type[T], value: Mapping[str, Any]) -> T:
    """A dataclass of ours from what `plain` made of it; a field that this version does not know is left out."""
    known: Any = kind  # mypy does not take a type for hashable
    hints = _hints(known)
    return kind(**{name: _built(hints[name], one) for name, one in value.items() if name in hints})


def _built(hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        (hint,) = [one for one in get_args(hint) if one is not type(None)]
        return None if value is None else _built(hint, value)
    if get_origin(hint) is tuple:
        return tuple(_built(get_args(hint)[0], one) for one in value)
    return built(hint, value) if is_dataclass(hint) and isinstance(hint, type) else value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _moved(start: StartRecord, by_s: float) -> StartRecord:
    spans = tuple(replace(span, start_s=span.start_s + by_s, end_s=span.end_s + by_s) for span in start.spans)
    return replace(start, spans=spans)
