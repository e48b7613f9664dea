"""The loads of each source device, who wants them, and which of them runs. Bookkeeping only.

Loads of one device run one after the other: two at once would share its bandwidth and both finish late. Loads that
somebody waits for come first, in the order of their first waiter; then prefetches in the order they were asked for. A
prefetch that runs is paused for a load that somebody waits for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from .cache import Image
from .errors import LoaderError
from .replies import Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A client's attach that waits for a load; `wants_progress` asks for notices meanwhile."""

    client: int
    request_id: int
    asked_at_s: float
    wants_progress: bool = False

    def failure(self, error: LoaderError) -> Failed:
        """The answer that says why there is no lease."""
        return Failed(id=self.request_id, error=type(error).__name__, message=str(error))


@dataclass(slots=True, kw_only=True)
class Load:
    """One load. `started_at_s` is None until it reads; `cancelled` says that it is about to stop.

    `paused_at_s` is None unless it is paused now, `paused_s` how long it was before.
    """

    image: Image
    order: int
    waiters: list[Waiter] = field(default_factory=list)
    prefetched: bool = False
    started_at_s: float | None = None
    cancelled: bool = False
    paused_at_s: float | None = None
    paused_s: float = 0.0

    @property
    def is_wanted(self) -> bool:
        return self.prefetched or bool(self.waiters)

    @property
    def rank(self) -> tuple[bool, float, int]:
        """The smaller, the sooner."""
        return (not self.waiters, self.waiters[0].asked_at_s if self.waiters else 0.0, self.order)


class DeviceQueue:
    """The loads of one device: at most one runs, some are paused, the others have not begun."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.running: Load | None = None
        self.paused: list[Load] = []
        self.queued: list[Load] = []

    @property
    def loads(self) -> list[Load]:
        """The running load, then the others in the order they will run."""
        others = sorted([*self.paused, *self.queued], key=lambda load: load.rank)
        return [*([self.running] if self.running else []), *others]

    @property
    def next(self) -> Load | None:
        """The load that should begin or go on now: none while one runs that need not give way."""
        waiting = [load for load in [*self.paused, *self.queued] if not load.cancelled]
        best = min(waiting, key=lambda load: load.rank, default=None)
        if best is None or self.running is None:
            return best
        gives_way = not self.running.waiters and not self.running.cancelled and self.running.started_at_s is not None
        return best if gives_way and best.waiters else None

    def start(self, load: Load) -> None:
        assert self.running is None
        self.queued.remove(load)
        self.running = load

    def pause(self, now_s: float) -> Load:
        """Takes the running load out of the way."""
        assert self.running is not None
        load, self.running = self.running, None
        load.paused_at_s = now_s
        self.paused.append(load)
        return load

    def resume(self, load: Load, now_s: float) -> None:
        assert self.running is None
        assert load.paused_at_s is not None
        self.paused.remove(load)
        load.paused_s += now_s - load.paused_at_s
        load.paused_at_s = None
        self.running = load

    def remove(self, load: Load) -> None:
        if load is self.running:
            self.running = None
        elif load in self.paused:
            self.paused.remove(load)
        else:
            self.queued.remove(load)


class LoadQueues:
    """One queue for each device that has loads."""

    def __init__(self) -> None:
        self._queues: dict[str, DeviceQueue] = {}
        self._orders = count(1)

    @property
    def devices(self) -> list[DeviceQueue]:
        """By name."""
        return [self._queues[device] for device in sorted(self._queues)]

    @property
    def loads(self) -> list[Load]:
        return [load for queue in self.devices for load in queue.loads]

    def add(self, image: Image) -> Load:
        load = Load(image=image, order=next(self._orders))
        self.queue_of(image).queued.append(load)
        return load

    def queue_of(self, image: Image) -> DeviceQueue:
        device = image.checkpoint.device
        return self._queues.setdefault(device, DeviceQueue(device))

    def of(self, image: Image) -> Load:
        return next(load for load in self.queue_of(image).loads if load.image is image)

    def remove(self, load: Load) -> None:
        queue = self.queue_of(load.image)
        queue.remove(load)
        if not queue.loads:
            del self._queues[queue.device]

    def requeue(self, load: Load) -> None:
        """A load that was removed starts over, for those who joined after it was cancelled."""
        fresh = self.add(load.image)
        fresh.waiters, fresh.prefetched = load.waiters, load.prefetched

    def ahead_of_attach(self, device: str, image: Image | None) -> list[Load]:
        """The loads that an attach of the image (None: of one that is not here) would wait for."""
        queue = self._queues.get(device, DeviceQueue(device))
        own = next((load for load in queue.loads if load.image is image), None)
        if own is not None and own is queue.running:
            return []
        awaited = [load for load in queue.loads if load.waiters and load is not own]
        if own is None or not own.waiters:
            return awaited
        return [load for load in awaited if load is queue.running or load.rank < own.rank]

    def take_waiters(self, client: int, request_id: int | None) -> list[tuple[Load, Waiter]]:
        """Removes the client's waiters: those of one request, or all of them for None."""
        taken = []
        for load in self.loads:
            gone = [w for w in load.waiters if w.client == client and request_id in (None, w.request_id)]
            load.waiters = [waiter for waiter in load.waiters if waiter not in gone]
            taken += [(load, waiter) for waiter in gone]
        return taken
