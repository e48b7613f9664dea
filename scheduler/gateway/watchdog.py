"""What ends an upstream call from outside: its replica's death, silence, and the stream's deadline."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from serverless_triton.scheduler.admission import Assignment
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


class Watchdog:
    """Severs `call` when one of them happens. Silence counts only while somebody waits to read, not while a client
    takes its time."""

    def __init__(
        self, call: UpstreamCall, assignment: Assignment, *, inactivity_s: float | None, deadline: Deadline | None
    ) -> None:
        self._call = call
        self._lost = assignment.lost
        self._inactivity_s = inactivity_s
        self._waiting_since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._lost.add_done_callback(self._on_lost)
        self._silence = None if inactivity_s is None else self._loop.call_later(inactivity_s, self._check_silence)
        self._deadline = None if deadline is None else self._loop.call_at(deadline.at_s, self._on_deadline, deadline)

    def reading(self) -> None:
        self._waiting_since = self._loop.time()

    def idle(self) -> None:
        self._waiting_since = None

    def stop(self) -> None:
        self._lost.remove_done_callback(self._on_lost)
        for timer in (self._silence, self._deadline):
            if timer is not None:
                timer.cancel()

    def _on_lost(self, lost: asyncio.Future[str]) -> None:
        reason = "the replica was given up" if lost.cancelled() else lost.result()
        self._call.sever(UpstreamError("UNAVAILABLE", reason))

    def _on_deadline(self, deadline: Deadline) -> None:
        self._call.sever(deadline.exceeded())

    def _check_silence(self) -> None:
        assert self._inactivity_s is not None
        now = self._loop.time()
        due = (now if self._waiting_since is None else self._waiting_since) + self._inactivity_s
        if due <= now:
            self._call.sever(UpstreamError("UNAVAILABLE", f"the replica was silent for {self._inactivity_s:g} s"))
        else:
            self._silence = self._loop.call_at(due, self._check_silence)
