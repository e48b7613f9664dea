"""A worker's end of its stub's socket: what came from it, what it was last told of each request, signs of life between.

Speaking never waits for the stub: a thread of the link's own sends, and what it has not sent yet grows together. What
the engine makes of a request is `worker.py`'s.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from serverless_triton.backend.channel import Channel, ChannelClosed
from serverless_triton.backend.engines.protocol import (
    CatchUpRequest,
    CaughtUpEvent,
    EngineEvent,
    EngineStats,
    FailureEvent,
    GenerationRequest,
    PositionEvent,
    Reservation,
)
from serverless_triton.backend.messages import (
    Cancel,
    CatchUp,
    CaughtUp,
    Failed,
    Freeze,
    Generate,
    Loaded,
    Position,
    ProtocolError,
    Stats,
    Tokens,
)
from serverless_triton.backend.outbox import News, Outbox

SIGN_OF_LIFE_S = 5.0  # how often a worker looks for requests of which it has said nothing for as long
Asked = Generate | CatchUp | Freeze | Cancel


class StubLink:
    """One thread listens; any thread speaks. A request counts as in flight from when it is read until its last word."""

    def __init__(self, channel: Channel, clock: Callable[[], float] = time.monotonic) -> None:
        self._channel = channel
        self._clock = clock
        self._lock = threading.Lock()  # guards _told, and no heartbeat overtakes the tokens before it
        self._told: dict[int, tuple[int, float]] = {}  # request → next position, when its stub last heard of it
        self._outbox = Outbox()
        self._is_gone = False
        threading.Thread(target=self._send, daemon=True).start()

    def listen(self, heard: Callable[[Asked], None]) -> None:
        """Returns when the stub is gone."""
        try:
            while True:
                message, _ = self._channel.receive()
                if isinstance(message, (Generate, CatchUp)):
                    with self._lock:
                        self._told[message.request] = (message.next_position, self._clock())
                if isinstance(message, (Generate, CatchUp, Freeze, Cancel)):
                    heard(message)
        except (ChannelClosed, ProtocolError, OSError):
            self._lose()

    def say(self, news: News) -> None:
        """Raises ChannelClosed once the stub is gone."""
        with self._lock:
            self._note(news)
            self._put(news)

    def report(self, message: Stats | Loaded) -> None:
        """What is of no request. Raises ChannelClosed."""
        self._channel.send(message)

    def flush(self, timeout_s: float) -> None:
        """Returns when all that was said has been sent, or when that took too long."""
        self._outbox.wait_until_idle(timeout_s)

    def _note(self, news: News) -> None:
        is_last = isinstance(news, (CaughtUp, Failed)) or (isinstance(news, Tokens) and news.finish_reason is not None)
        if is_last:
            self._told.pop(news.request, None)
        elif isinstance(news, Tokens):
            self._told[news.request] = (news.first_position + len(news.output_ids), self._clock())
        elif news.request in self._told:
            self._told[news.request] = (self._told[news.request][0], self._clock())

    def _put(self, news: News) -> None:
        if self._is_gone:
            raise ChannelClosed("the stub is gone")
        self._outbox.put(news)

    def _send(self) -> None:
        try:
            while (waiting := self._outbox.take()) is not None:
                for news in waiting:
                    self._channel.send(news)
        except (ChannelClosed, ProtocolError):
            self._lose()

    def _lose(self) -> None:
        self._is_gone = True
        self._outbox.close()

    def beat(self) -> None:
        """An empty message for every request that nothing was said of for SIGN_OF_LIFE_S. Raises ChannelClosed.

        The engine tells positions of those that wait or prefill, but only between steps: this is for steps that take
        longer, and for requests that the main thread has not taken up yet.
        """
        now_s = self._clock()
        with self._lock:
            for request, (position, heard_s) in self._told.items():
                if now_s - heard_s >= SIGN_OF_LIFE_S:
                    self._put(
                        Tokens(request=request, first_position=position, output_ids=[], text="", num_input_tokens=0)
                    )

    def fail_all(self, code: str, reason: str) -> None:
        """The last word on everything in flight. Raises ChannelClosed."""
        with self._lock:
            requests = sorted(self._told)
        for request in requests:
            self.say(Failed(request=request, code=code, message=reason))


def message_of(event: EngineEvent, token_state: str | None = None) -> News:
    """What the stub is told of an engine's event; `token_state` is that of the event's request, if it was frozen."""
    if isinstance(event, FailureEvent):
        return Failed(request=event.request, code=event.code, message=event.message)
    if isinstance(event, PositionEvent):
        return Position(
            request=event.request,
            state=event.state,
            held_tokens=event.held_tokens,
            total_tokens=event.total_tokens,
        )
    if isinstance(event, CaughtUpEvent):
        return CaughtUp(request=event.request, held_tokens=event.held_tokens)
    return Tokens(
        request=event.request,
        first_position=event.first_position,
        output_ids=list(event.output_ids),
        text=event.text,
        num_input_tokens=event.num_input_tokens,
        prompt_ids=None if event.prompt_ids is None else list(event.prompt_ids),
        finish_reason=event.finish_reason,
        token_state=token_state if event.finish_reason == "frozen" else None,
    )


def generation_of(message: Generate) -> GenerationRequest:
    """What the engine is asked for; with a reservation, to go on from what was caught up under it."""
    return GenerationRequest(
        request=message.request,
        text=message.text,
        input_ids=message.input_ids,
        messages=message.messages,
        resume_token_ids=message.resume_token_ids,
        sampling_parameters=message.sampling_parameters,
        reservation=None
        if message.reservation is None
        else Reservation(stream=message.reservation, attempt=message.attempt),
        deadline_unix_s=message.deadline_unix_s,
    )


def catch_up_of(message: CatchUp) -> CatchUpRequest:
    return CatchUpRequest(
        request=message.request,
        reservation=Reservation(stream=message.reservation, attempt=message.attempt),
        start_position=message.start_position,
        text=message.text,
        input_ids=message.input_ids,
        resume_token_ids=message.resume_token_ids,
        sampling_parameters=message.sampling_parameters,
    )


def stats_of(stats: EngineStats) -> Stats:
    return Stats(**{name: getattr(stats, name) for name in _STATS})


_STATS = tuple(field.name for field in dataclasses.fields(Stats))
