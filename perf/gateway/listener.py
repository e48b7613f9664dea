"""Clients in a process of their own: `python -m perf.gateway.listener`, the task on standard input, the outcome on
standard output.

They ask for their streams at once and note when each message came; what the messages say is read when all are there, so
that it costs no time in between. A token of a fake engine that tells the time says how long it was on its way.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from perf.results import percentile
from serverless_triton.backend.engines.fake import TIME_TOKENS
from serverless_triton.scheduler.gateway.tensors import add_input, number_tensor, raw_outputs, string_tensor

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
PROMPT = b"a"
# So many first messages of each stream count for nothing: streams begin one after the other.
WARM_UP_MESSAGES = 5
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # grpc-stubs leaves it out


class StreamFailed(Exception):
    """A stream did not bring what was asked for; the message has the server's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """So many streams of a model, of so many tokens each, over so many connections."""

    address: str
    model: str
    streams: int
    tokens: int
    connections: int
    tells_time: bool = True  # whether tokens are those of a fake engine that does
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`messages_per_s` is counted while all streams run; latencies are seconds from a token's making to its arrival."""

    messages: int
    tokens: int
    messages_per_s: float
    first_token_s: Sequence[float]  # from the request to each stream's first message
    latency_s: Sequence[float] = ()  # of the tokens past the warm-up


@dataclass(slots=True, kw_only=True)
class Heard:
    """One stream's messages as they came, by time (nanoseconds of the monotonic clock)."""

    asked_ns: int = 0
    times_ns: list[int] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)

    def tokens(self) -> list[list[int]]:
        """Of each message. Raises StreamFailed."""
        return [_token_ids(message) for message in self.messages]


async def listen(task: Task) -> Outcome:
    """Raises StreamFailed, grpc.aio.AioRpcError."""
    request = _request(task).SerializeToString()
    channels = [_channel(task.address) for _ in range(min(task.connections, task.streams))]
    heard = [Heard() for _ in range(task.streams)]
    hearing = (_hear(channels[i % len(channels)], request, task.headers, stream) for i, stream in enumerate(heard))
    await asyncio.gather(*hearing)
    await asyncio.gather(*(channel.close(None) for channel in channels))
    return outcome(heard, task)


def _channel(address: str) -> grpc.aio.Channel:
    """With a connection of its own."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def _request(task: Task) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=task.model)
    add_input(request, string_tensor("text_input", PROMPT))
    add_input(request, number_tensor("stream", "BOOL", [True]))
    parameters = {"max_tokens": task.tokens, "ignore_eos": True}
    add_input(request, string_tensor("sampling_parameters", json.dumps(parameters).encode()))
    request.outputs.add(name="text_output")
    request.outputs.add(name="output_ids")
    return request


async def _hear(channel: grpc.aio.Channel, request: bytes, headers: Mapping[str, str], heard: Heard) -> None:
    """On the wire a stream of one request is the same as that request."""
    ask: Any = channel.unary_stream(METHOD, None, None)  # bytes as they are
    heard.asked_ns = time.monotonic_ns()
    call = ask(request, metadata=tuple(headers.items()), wait_for_ready=True)
    while (message := await call.read()) is not _EOF:
        heard.times_ns.append(time.monotonic_ns())
        heard.messages.append(message)


def _token_ids(message: bytes) -> list[int]:
    said = pb.ModelStreamInferResponse.FromString(message)
    if said.error_message:
        raise StreamFailed(said.error_message)
    raw = raw_outputs(said.infer_response).get("output_ids", b"")
    return list(struct.unpack(f"<{len(raw) // 4}i", raw))


def outcome(heard: Sequence[Heard], task: Task) -> Outcome:
    """Raises StreamFailed where tokens are missing."""
    tokens = [stream.tokens() for stream in heard]
    for of_stream in tokens:
        if sum(map(len, of_stream)) != task.tokens:
            raise StreamFailed(f"{sum(map(len, of_stream))} tokens came of {task.tokens}")
    return Outcome(
        messages=sum(len(stream.messages) for stream in heard),
        tokens=task.tokens * task.streams,
        messages_per_s=steady_rate([stream.times_ns for stream in heard]),
        first_token_s=[(stream.times_ns[0] - stream.asked_ns) / 1e9 for stream in heard],
        latency_s=[
            latency_s(token, at_ns)
            for stream, of_stream in zip(heard, tokens, strict=True)
            for at_ns, ids in list(zip(stream.times_ns, of_stream, strict=True))[WARM_UP_MESSAGES:]
            for token in ids
        ]
        if task.tells_time
        else (),
    )


def latency_s(token: int, heard_ns: int) -> float:
    """From the making of a token that tells the time until it was heard; both on this host's monotonic clock."""
    return ((heard_ns // 1000 - token) % TIME_TOKENS) / 1e6


def steady_rate(times_ns: Sequence[Sequence[int]]) -> float:
    """Messages a second between the last stream's first message and the first stream's last; of all where that is empty
    (streams that went one after the other).
    """
    first_ns, last_ns = max(times[0] for times in times_ns), min(times[-1] for times in times_ns)
    if first_ns >= last_ns:
        first_ns, last_ns = min(times[0] for times in times_ns), max(times[-1] for times in times_ns)
    counted = sum(first_ns < at_ns <= last_ns for times in times_ns for at_ns in times)
    return counted / max((last_ns - first_ns) / 1e9, 1e-9)


def figures_of(found: Outcome) -> dict[str, float]:
    """What is compared."""
    latencies = {f"latency_p{share}_s": percentile(found.latency_s, share) for share in (50, 99) if found.latency_s}
    return {
        "messages_per_s": found.messages_per_s,
        "message_tokens": found.tokens / found.messages,
        "first_token_p50_s": percentile(found.first_token_s, 50),
        "first_token_p99_s": percentile(found.first_token_s, 99),
        **latencies,
    }


def main(task: Task) -> dict[str, float]:
    found = asyncio.run(listen(task))
    return {**figures_of(found), "messages": found.messages}


if __name__ == "__main__":
    print(json.dumps(main(Task(**json.load(sys.stdin)))))
