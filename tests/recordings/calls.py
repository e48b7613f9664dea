"""What is asked of a real tritonserver once, and of the gateway in every run of the tests: the table of calls.

`m` is the demo model, decoupled as all of ours are. `plain` has the same tensors and is not decoupled, so that the
table also has what Triton says to a unary request; at the gateway it is a model like `m`. `sleeper`, `stranger`, `onnx`
and `broken` are in the repository only; nobody asks `stranger` for an inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

FILE = Path(__file__).with_name("triton-2.51.json")  # the recorded answers, by a call's name


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCall:
    """One HTTP request, byte for byte."""

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcCall:
    """One gRPC call. `method` is its path; `messages` are what the client sends, bytes where they are no message.

    `answer` is what comes back; None: its bytes are compared.
    """

    name: str
    method: str
    messages: tuple[Message | bytes, ...]
    answer: type[Message] | None
    streams: bool = False
    metadata: tuple[tuple[str, str], ...] = ()


Call = HttpCall | GrpcCall
Answer = dict[str, Any]


def all_calls() -> Iterator[Call]:
    """In the order in which they are asked: what changes something comes last."""
    from tests.recordings.grpc_calls import GRPC_CALLS
    from tests.recordings.http_calls import HTTP_CALLS

    yield from HTTP_CALLS
    yield from GRPC_CALLS
