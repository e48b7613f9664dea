"""The loads that are queued or running, in the order of their first request, and who wants them. Bookkeeping only."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import takewhile

from .cache import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A client's attach that waits for a load."""

    client: int
    request_id: int
    asked_at_s: float


@dataclass(slots=True, kw_only=True)
class Load:
    """One load. `started_at_s` is None while it is queued; `cancelled` once its reader was told to stop."""

    image: Image
    waiters: list[Waiter] = field(default_factory=list)
    prefetched: bool = False
    started_at_s: float | None = None
    cancelled: bool = False

    @property
    def is_wanted(self) -> bool:
        return self.prefetched or bool(self.waiters)


class LoadQueue:
    """At most one load runs, the others wait in order: two at once would share the disk and both finish late."""

    def __init__(self) -> None:
        self._queued: deque[Load] = deque()
        self.running: Load | None = None

    @property
    def depth(self) -> int:
        """How many loads are queued or running."""
        return len(self.loads)

    @property
    def loads(self) -> list[Load]:
        """The running load, then the queued ones in order."""
        return [*([self.running] if self.running else []), *self._queued]

    @property
    def next(self) -> Load | None:
        """The load that may start now: none while another runs."""
        return self._queued[0] if self._queued and self.running is None else None

    def ahead_of(self, image: Image | None) -> list[Load]:
        """The loads before the image's own; all of them for one that is not here."""
        return list(takewhile(lambda load: load.image is not image, self.loads))

    def add(self, image: Image) -> None:
        self._queued.append(Load(image=image))

    def of(self, image: Image) -> Load:
        return next(load for load in self.loads if load.image is image)

    def start(self, load: Load, now_s: float) -> None:
        assert load is self.next
        self._queued.popleft()
        load.started_at_s = now_s
        self.running = load

    def finish(self) -> Load:
        """Takes the running load out."""
        assert self.running is not None
        load, self.running = self.running, None
        return load

    def requeue(self, load: Load) -> None:
        """Starts over with the waiters that joined after the load was cancelled."""
        load.cancelled, load.started_at_s = False, None
        self._queued.append(load)

    def remove(self, load: Load) -> None:
        self._queued.remove(load)

    def take_waiters(self, client: int, request_id: int | None) -> list[tuple[Load, Waiter]]:
        """Removes the client's waiters: those of one request, or all of them for None."""
        taken = []
        for load in self.loads:
            gone = [w for w in load.waiters if w.client == client and request_id in (None, w.request_id)]
            load.waiters = [waiter for waiter in load.waiters if waiter not in gone]
            taken += [(load, waiter) for waiter in gone]
        return taken
