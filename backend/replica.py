"""What the agent knows of one replica, and why a start of one can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from serverless_triton.backend.async_channel import AsyncChannel
from serverless_triton.backend.device_map import Share
from serverless_triton.backend.messages import Loaded, WireExactness
from serverless_triton.backend.parked_stubs import ParkedStub
from serverless_triton.backend.worker_pool import WorkerLink


class StartFailed(Exception):
    """A replica could not be started. `code` is a gRPC status name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Replica:
    """One replica. `loaded` resolves when its engine is warm, or to why it is not.

    `parts` are the bytes that it needs of its devices, `shares` where they are, once they are granted.
    One that starts on a parked stub has it in `woken` until the two are connected; `attached` resolves then.
    """

    id: str
    model: str
    parameters: dict[str, str]
    parts: Sequence[int]
    loaded: asyncio.Future[Loaded]
    shares: tuple[Share, ...] = ()
    worker: WorkerLink | None = None
    stub: AsyncChannel | None = None
    woken: ParkedStub | None = None
    attached: asyncio.Future[None] | None = None
    stub_came_s: float | None = None  # on this host's monotonic clock
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def device_bytes(self) -> int:
        return sum(self.parts)

    @property
    def is_loaded(self) -> bool:
        return self.loaded.done() and not self.loaded.cancelled() and self.loaded.exception() is None

    @property
    def exactness(self) -> WireExactness:
        """What its engine promises; nothing yet before that is loaded."""
        return self.loaded.result().exactness if self.is_loaded else {}

    @property
    def is_attached(self) -> bool:
        """Whether requests to its stub reach its engine."""
        return self.stub is not None and (self.attached is None or self.attached.done())

    @property
    def stub_channel(self) -> AsyncChannel | None:
        """Of the stub that serves this replica, or that waits to."""
        return self.woken.channel if self.woken is not None else self.stub

    @property
    def missing_half(self) -> str | None:
        """The half that has not come: nobody can be served by the other alone."""
        if self.worker is None:
            return "engine worker"
        return "stub" if self.stub is None and self.stub_came_s is None else None
