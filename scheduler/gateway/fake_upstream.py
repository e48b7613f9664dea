"""An Upstream without servers, for tests and for measuring the gateway alone.

`FakeUpstream()` leaves every call to the test, which sends, ends and fails it by hand. `FakeUpstream(FakeEngine(...))`
answers by itself as a replica would: token n of any prompt is n, its text " n".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.gateway.tensors import add_output, number_tensor, read_request_tensors, string_tensor
from serverless_triton.scheduler.gateway.upstream import RequestRefused, UpstreamCall, UpstreamError

# What a replica does next: a response, an error, or None for the end.
_Item = Any


def token_response(
    *,
    attempt: int,
    first_position: int,
    output_ids: Sequence[int],
    text: str,
    prompt_ids: Sequence[int] | None = None,
    num_input_tokens: int = 1,
    finish_reason: str | None = None,
) -> pb.ModelInferResponse:
    """A replica's response, as backend/model.py writes it."""
    response = pb.ModelInferResponse()
    tensors = [
        string_tensor("text_output", text.encode()),
        number_tensor("output_ids", "INT32", output_ids),
        number_tensor("attempt", "INT32", [attempt]),
        number_tensor("first_position", "INT32", [first_position]),
        number_tensor("num_input_tokens", "UINT32", [num_input_tokens]),
    ]
    if prompt_ids is not None:
        tensors.append(number_tensor("prompt_ids", "INT32", prompt_ids))
    if finish_reason is not None:
        tensors.append(string_tensor("finish_reason", finish_reason.encode()))
    for tensor in tensors:
        add_output(response, tensor)
    return response


class FakeCall:
    """One call; the test is the server."""

    def __init__(self, address: str, request: pb.ModelInferRequest, items: Iterator[_Item] | None = None) -> None:
        self.address = address
        self.request = request
        self.streamed = True  # may have any number of responses
        self.severed: UpstreamError | None = None
        self._items = items
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()

    @property
    def attempt(self) -> int:
        return int(self.request.parameters["attempt"].int64_param)

    @property
    def resume_token_ids(self) -> list[int]:
        tensor = read_request_tensors(self.request).get("resume_token_ids")
        return [int(number) for number in tensor.numbers()] if tensor is not None else []

    @property
    def unread(self) -> int:
        """How much of what was sent nobody has read yet."""
        return self._queue.qsize()

    def send(self, response: pb.ModelInferResponse) -> None:
        self._queue.put_nowait(response)

    def tokens(self, first_position: int, *output_ids: int, finish_reason: str | None = None) -> None:
        """Send these tokens, " n" the text of each. With a finish reason they are the last, and the call ends."""
        text = "".join(f" {token}" for token in output_ids)
        self.send(
            token_response(
                attempt=self.attempt,
                first_position=first_position,
                output_ids=output_ids,
                text=text,
                prompt_ids=[7] if first_position == len(self.resume_token_ids) else None,
                finish_reason=finish_reason,
            )
        )
        if finish_reason is not None:
            self.end()

    def end(self) -> None:
        """The server closes the stream."""
        self._queue.put_nowait(None)

    def fail(self, code: str, message: str = "failed") -> None:
        self._queue.put_nowait(UpstreamError(code, message))

    def refuse(self, words: str) -> None:
        """As Triton does on a stream."""
        self._queue.put_nowait(RequestRefused("UNAVAILABLE", words))

    async def read(self) -> pb.ModelInferResponse | None:
        if self.severed is not None:
            raise self.severed
        item = await self._queue.get() if self._items is None else await self._scripted(self._items)
        if item is None:
            self.end()  # whoever reads on finds the end again, as of a real call
        if isinstance(item, UpstreamError):
            raise item
        return item

    async def _scripted(self, items: Iterator[_Item]) -> _Item:
        await asyncio.sleep(0)
        return self.severed or next(items, None)

    def sever(self, error: UpstreamError) -> None:
        if self.severed is None:
            self.severed = error
            self._queue.put_nowait(error)


class FakeUpstream:
    """Keeps every call in `calls`, in order."""

    def __init__(self, engine: Callable[[FakeCall], Iterator[_Item]] | None = None) -> None:
        self._engine = engine
        self._arrived = asyncio.Event()
        self.calls: list[FakeCall] = []
        self.closed = False

    def infer(self, address: str, request: pb.ModelInferRequest) -> FakeCall:
        call = FakeCall(address, request)
        if self._engine is not None:
            call = FakeCall(address, request, self._engine(call))
        self.calls.append(call)
        self._arrived.set()
        return call

    def infer_once(self, address: str, request: pb.ModelInferRequest) -> UpstreamCall:
        call = self.infer(address, request)
        call.streamed = False
        return call

    def script(self, engine: Callable[[FakeCall], Iterator[_Item]]) -> None:
        """How calls are answered from here on."""
        self._engine = engine

    async def close(self) -> None:
        self.closed = True

    async def call(self, index: int) -> FakeCall:
        """The call number `index`, waiting for it to be made."""
        while len(self.calls) <= index:
            self._arrived.clear()
            await self._arrived.wait()
        return self.calls[index]


class FakeEngine:
    """Generates `count` tokens. Kills its replica before the positions in `deaths`, each once."""

    def __init__(self, count: int = 4, deaths: Sequence[int] = ()) -> None:
        self._count = count
        self._deaths = list(deaths)

    def __call__(self, call: FakeCall) -> Iterator[_Item]:
        done = len(call.resume_token_ids)
        for position in range(done, self._count):
            if position in self._deaths:
                self._deaths.remove(position)
                yield UpstreamError("UNAVAILABLE", "worker died")
            yield token_response(
                attempt=call.attempt,
                first_position=position,
                output_ids=[position],
                text=f" {position}",
                prompt_ids=[7] if position == done else None,
                finish_reason="length" if position == self._count - 1 else None,
            )
