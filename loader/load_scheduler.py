"""Decides which load runs next on each device, and what has to leave the arena, or move in it, to make room for it.

Pure but for Effects. Who asked for a load and what its waiters are told is the keeper's business.
"""

from __future__ import annotations

from collections.abc import Sequence

from .cache import Image, ImageCache, ImageState, is_evictable
from .effects import Effects
from .errors import LoaderError, StoreFull
from .evictions import PendingEvictions
from .holes import Move
from .load_queue import DeviceQueue, Load, LoadQueues
from .quarantine import Quarantine
from .replies import Evicted
from .searches import first_that
from .succession import Succession


class LoadScheduler:
    """Starts, pauses and stops the loads of the queues, and evicts. It and the keeper work on the same parts."""

    def __init__(
        self, cache: ImageCache, queues: LoadQueues, quarantine: Quarantine, succession: Succession, effects: Effects
    ) -> None:
        self._cache = cache
        self._queues = queues
        self._quarantine = quarantine
        self._succession = succession
        self._effects = effects
        self._evictions = PendingEvictions()
        # The load that the moves make room for, while there are any.
        self._awaits_moves: Load | None = None

    def advance(self, now_s: float) -> None:
        """Starts and resumes what can be; to be called after whatever may have changed that."""
        for queue in self._queues.devices:
            while (load := queue.next) is not None and self._try_next(queue, load, now_s):
                continue

    def begin(self, load: Load, now_s: float) -> None:
        """Has its image, which has a place, read."""
        load.started_at_s = now_s
        # What is overwritten from now on must not be found by a successor.
        self._succession.save()
        self._effects.start_load(load.image)

    def end_moves(self) -> Load:
        """The moves are done; returns the load that they were for, which may be cancelled."""
        load, self._awaits_moves = self._awaits_moves, None
        assert load is not None
        for image in self._cache.end_moves():
            if image.state is ImageState.EVICTING:
                self._forget(image)
        return load

    def drop_if_unwanted(self, load: Load) -> None:
        """Stops a load that nobody wants any more."""
        if load.is_wanted or load.cancelled:
            return
        if load.image.state is ImageState.EMPTY:
            self._queues.remove(load)
            self._forget(load.image)
            return
        load.cancelled = True
        if load is not self._awaits_moves:
            self._effects.cancel_load(load.image)

    def give_up(self, load: Load, error: LoaderError) -> None:
        """Its image goes, and its waiters learn why."""
        self._forget(load.image)
        for waiter in load.waiters:
            self._effects.reply(waiter.client, waiter.failure(error))

    def evict(self, image: Image) -> None:
        """Drops an image that nobody uses, once it has moved."""
        if image.moving:
            self._cache.begin_eviction(image)
        else:
            self._forget(image)

    def evict_all(self, client: int, reply: Evicted, images: Sequence[Image], on_devices: Sequence[int]) -> None:
        """Drops images that nobody uses or awaits; the reply follows once they and those `on_devices` are gone."""
        self._evictions.add(client, reply, (image.id for image in images), on_devices)
        for image in images:
            self.evict(image) if is_evictable(image) else self._stop_prefetch(image)
        self._answer_evictions()

    def end_cancelled(self, load: Load) -> None:
        """A cancelled load has ended, well or not: who evicted its image waits no longer, whoever wants it since.

        An image that came to be all the same, and that nobody wants since, goes.
        """
        if load.image.state is ImageState.READY and not load.is_wanted and self._evictions.awaits(load.image.id):
            self._forget(load.image)
        else:
            self._evictions.gone(load.image.id)
            self._answer_evictions()

    def stop_awaiting_evictions(self, client: int, request_id: int | None) -> list[int]:
        """The client's evictions (None: all of them) go on, unanswered; returns the ids of their requests."""
        return self._evictions.drop(client, request_id)

    def freed_on_device(self, image_id: int) -> None:
        """The memory of an image on a device is back."""
        self._evictions.gone_from_device(image_id)
        self._answer_evictions()

    def _try_next(self, queue: DeviceQueue, load: Load, now_s: float) -> bool:
        """Starts or resumes the load; False where it has to wait for room, True where the queue changed."""
        if load.paused_at_s is None:
            try:
                moves = self._make_room(load)
            except StoreFull as error:
                self._queues.remove(load)
                self.give_up(load, error)
                return True
            if moves is None:
                return False
        if queue.running is not None:
            self._effects.pause_load(queue.pause(now_s).image)
        if load.paused_at_s is not None:
            queue.resume(load, now_s)
            self._effects.resume_load(load.image)
            return True
        queue.start(load)
        if not moves:
            self.begin(load, now_s)
            return True
        self._awaits_moves = load
        self._succession.save()
        self._effects.start_moves(moves)
        return True

    def _make_room(self, load: Load) -> tuple[Move, ...] | None:
        """Places the load's image, evicting what must go; None while room is on its way. Raises StoreFull."""
        if self._awaits_moves is not None:
            return None
        try:
            victims = self._cache.victims_for(load.image)
        except StoreFull:
            if self._cancel_prefetches_for(load) or self._quarantine.bytes:
                return None
            raise
        for victim in victims:
            self.evict(victim)
        return self._cache.place(load.image)

    def _cancel_prefetches_for(self, load: Load) -> bool:
        """Has the newest prefetches stop that keep a load which somebody waits for out of the arena.

        False where there is no room without all of them either, and then none stops. What stops already counts.
        """
        begun = [other for other in self._queues.loads if other.started_at_s is not None]
        stopping = [other.image for other in begun if other.cancelled]
        others = [other for other in begun if not (other.cancelled or other.waiters or other.image.pinned)]
        newest = [other.image for other in sorted(others, key=lambda other: -other.order)] if load.waiters else []
        enough = first_that(0, len(newest), lambda count: self._fits_without(load, [*stopping, *newest[:count]]))
        for image in newest[: enough or 0]:
            self._stop_prefetch(image)
        return enough is not None

    def _fits_without(self, load: Load, leaving: Sequence[Image]) -> bool:
        try:
            self._cache.victims_for(load.image, leaving)
        except StoreFull:
            return False
        return True

    def _stop_prefetch(self, image: Image) -> None:
        load = self._queues.of(image)
        load.prefetched = False
        self.drop_if_unwanted(load)

    def _forget(self, image: Image) -> None:
        self._cache.forget(image)
        self._evictions.gone(image.id)
        self._answer_evictions()

    def _answer_evictions(self) -> None:
        for client, reply in self._evictions.take_due():
            self._effects.reply(client, reply)
