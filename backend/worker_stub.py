"""A worker's end of its stub's socket: what came from it, what it was last told of each request, signs of life between.

What the engine makes of a request is `worker.py`'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from serverless_triton.backend.channel import Channel, ChannelClosed
from serverless_triton.backend.engines.protocol import FailureEvent, TokenEvent
from serverless_triton.backend.messages import Cancel, Failed, Generate, ProtocolError, Tokens

HEARTBEAT_S = 5.0


class StubLink:
    """One thread listens; any thread sends. A request counts as in flight from when it is read until its last word."""

    def __init__(self, channel: Channel, clock: Callable[[], float] = time.monotonic) -> None:
        self._channel = channel
        self._clock = clock
        self._lock = threading.Lock()  # guards _told, and no heartbeat overtakes the tokens before it
        self._told: dict[int, tuple[int, float]] = {}  # request → next position, when its stub last heard of it

    def listen(self, heard: Callable[[Generate | Cancel], None]) -> None:
        """Returns when the stub is gone."""
        try:
            while True:
                message, _ = self._channel.receive()
                if isinstance(message, Generate):
                    with self._lock:
                        self._told[message.request] = (len(message.resume_token_ids), self._clock())
                if isinstance(message, (Generate, Cancel)):
                    heard(message)
        except (ChannelClosed, ProtocolError, OSError):
            return

    def say(self, message: Tokens | Failed) -> None:
        """Raises ChannelClosed."""
        with self._lock:
            if isinstance(message, Failed) or message.finish_reason is not None:
                self._told.pop(message.request, None)
            else:
                next_position = message.first_position + len(message.output_ids)
                self._told[message.request] = (next_position, self._clock())
            self._channel.send(message)

    def beat(self) -> None:
        """An empty message for every request that is queued or in a long prefill. Raises ChannelClosed."""
        now_s = self._clock()
        with self._lock:
            for request, (position, heard_s) in self._told.items():
                if now_s - heard_s >= HEARTBEAT_S:
                    self._channel.send(
                        Tokens(request=request, first_position=position, output_ids=[], text="", num_input_tokens=0)
                    )

    def fail_all(self, code: str, reason: str) -> None:
        """The last word on everything in flight. Raises ChannelClosed."""
        with self._lock:
            requests = sorted(self._told)
        for request in requests:
            self.say(Failed(request=request, code=code, message=reason))


def message_of(event: TokenEvent | FailureEvent) -> Tokens | Failed:
    """What the stub is told of an engine's event."""
    if isinstance(event, FailureEvent):
        return Failed(request=event.request, code=event.code, message=event.message)
    return Tokens(
        request=event.request,
        first_position=event.first_position,
        output_ids=list(event.output_ids),
        text=event.text,
        num_input_tokens=event.num_input_tokens,
        prompt_ids=None if event.prompt_ids is None else list(event.prompt_ids),
        finish_reason=event.finish_reason,
    )
