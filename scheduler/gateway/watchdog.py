"""What ends an upstream call from outside: its replica's death, silence, and the stream's deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from serverless_triton.scheduler.admission import Assignment
from serverless_triton.scheduler.gateway.stall_timer import StallTimer
from serverless_triton.scheduler.gateway.upstream import UpstreamCall, UpstreamError


class DeadlineExceeded(UpstreamError):
    """The stream was not over in time."""

    def __init__(self, message: str) -> None:
        super().__init__("DEADLINE_EXCEEDED", message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """When a stream must be over, in the event loop's time, and what its client hears otherwise."""

    at_s: float
    words: str

    @property
    def left_s(self) -> float:
        return max(0.0, self.at_s - asyncio.get_running_loop().time())

    def exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(self.words)


def first_deadline(given_s: float | None, allowed_s: float | None) -> Deadline | None:
    """The request's own or the gateway's, whichever comes first from now on."""
    now_s = asyncio.get_running_loop().time()
    if given_s is not None and (allowed_s is None or given_s <= allowed_s):
        words = f"the request took longer than the {round(given_s, 3):g} s that it was given"
        return Deadline(at_s=now_s + given_s, words=words)
    if allowed_s is None:
        return None
    return Deadline(at_s=now_s + allowed_s, words="the stream took longer than the gateway allows")


class Watchdog:
    """Severs `call` when one of them happens. Silence counts only while somebody waits to read, not while a client
    takes its time. At death and deadline the place is given back at once, however long the client takes to hear."""

    def __init__(
        self,
        call: UpstreamCall,
        assignment: Assignment,
        *,
        inactivity_s: float | None,
        deadline: Deadline | None,
        give_back: Callable[[], None],
    ) -> None:
        self._call = call
        self._lost = assignment.lost
        self._give_back = give_back
        self._inactivity_s = inactivity_s
        self._lost.add_done_callback(self._on_lost)
        self._silence = None if inactivity_s is None else StallTimer(inactivity_s, self._on_silence)
        loop = asyncio.get_running_loop()
        self._deadline = None if deadline is None else loop.call_at(deadline.at_s, self._on_deadline, deadline)

    def reading(self) -> None:
        if self._silence is not None:
            self._silence.begin()

    def idle(self) -> None:
        if self._silence is not None:
            self._silence.end()

    def stop(self) -> None:
        self._lost.remove_done_callback(self._on_lost)
        if self._silence is not None:
            self._silence.stop()
        if self._deadline is not None:
            self._deadline.cancel()

    def _on_lost(self, lost: asyncio.Future[str]) -> None:
        reason = "the replica was given up" if lost.cancelled() else lost.result()
        self._call.sever(UpstreamError("UNAVAILABLE", reason))
        self._give_back()

    def _on_deadline(self, deadline: Deadline) -> None:
        self._call.sever(deadline.exceeded())
        self._give_back()

    def _on_silence(self) -> None:
        self._call.sever(UpstreamError("UNAVAILABLE", f"the replica was silent for {self._inactivity_s:g} s"))
