"""Decides which images are loaded, kept and dropped, and who is told.

Pure but for its Effects: events come in as method calls with the time, what is to be done goes out through Effects.
One thread calls it, so it has no locks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from .cache import Image, ImageCache, ImageState, is_evictable
from .checkpoint import Checkpoint
from .errors import (
    CheckpointCorrupted,
    ImageLeased,
    ImagePinned,
    LoaderError,
    StoreCancelled,
    StoreFull,
    StoreUnavailable,
)
from .estimator import IN_DRAM, Bandwidths, estimate_read
from .load_queue import Load, LoadQueue, Waiter
from .messages import (
    Attached,
    Estimate,
    Estimated,
    Evicted,
    Failed,
    ImageStatus,
    LoadReceipt,
    Pinned,
    Prefetching,
    Reply,
    Status,
    StoreStatus,
    Tier,
    Unpinned,
)
from .metrics import BandwidthMeter, LoadTotals, Outcome, StoreSnapshot


class Effects(Protocol):
    """What the keeper may do to the world. None of these blocks or calls back."""

    def reply(self, client: int, message: Reply, image_id: int | None = None) -> None:
        """Sends a reply, with the image's descriptor where `image_id` is given."""

    def start_load(self, image: Image) -> None:
        """Begins a load; load_finished or load_failed follows."""

    def cancel_load(self, image: Image) -> None:
        """Asks the running load to stop; load_failed or load_finished follows all the same."""

    def free(self, image: Image) -> None:
        """Gives the image's memory back; freed follows, in the order of these calls."""

    def read_bytes(self, image: Image) -> int:
        """How far the image's load has come; 0 before it starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """Where a finished load took its bytes from, and whether all of them were compared with their hashes."""

    tier: Tier
    direct_io: bool
    verified: bool


class Keeper:
    """The store's decisions over one ImageCache."""

    def __init__(self, cache: ImageCache, effects: Effects, throttle_bytes_per_second: int = 0) -> None:
        self._cache = cache
        self._effects = effects
        self._throttle = throttle_bytes_per_second
        self._meter = BandwidthMeter()
        self._totals = LoadTotals()
        self._queue = LoadQueue()
        self._evictions: dict[int, list[tuple[int, Evicted]]] = {}

    # Requests

    def attach(self, client: int, request_id: int, checkpoint: Checkpoint, now_s: float) -> None:
        """Leases the image at once, or once its load is complete. Raises StoreFull."""
        image = self._image_of(checkpoint)
        if image.state is ImageState.READY:
            self._totals.loaded("dram", 0, 0.0)
            self._hand_over(image, client, request_id, self._receipt(image, "dram"))
            return
        waiter = Waiter(client=client, request_id=request_id, asked_at_s=now_s)
        self._queue.of(image).waiters.append(waiter)
        self._start_next(now_s)

    def prefetch(self, client: int, request_id: int, checkpoint: Checkpoint, now_s: float) -> None:
        """Queues a load that goes on without anybody waiting. Raises StoreFull."""
        image = self._wanted_image_of(checkpoint)
        self._effects.reply(client, Prefetching(id=request_id, image=self._status_of(image)))
        self._start_next(now_s)

    def pin(self, client: int, request_id: int, checkpoint: Checkpoint, now_s: float) -> None:
        """As prefetch(), and the image stays until it is unpinned. Raises StoreFull."""
        image = self._wanted_image_of(checkpoint)
        image.pinned = True
        self._effects.reply(client, Pinned(id=request_id, image=self._status_of(image)))
        self._start_next(now_s)

    def unpin(self, client: int, request_id: int, path: str) -> None:
        """Lets every version of a checkpoint go again when its room is needed."""
        images = [image for image in self._cache.at_path(path) if image.pinned]
        for image in images:
            image.pinned = False
        self._effects.reply(client, Unpinned(id=request_id, images=len(images)))

    def evict(self, client: int, request_id: int, path: str, now_s: float) -> None:
        """Drops every version of a checkpoint. Raises ImageLeased or ImagePinned, and then drops none."""
        images = self._cache.at_path(path)
        if any(image.pinned for image in images):
            raise ImagePinned(f"{path} is pinned; unpin it, then evict it again")
        if any(self._is_in_use(image) for image in images):
            raise ImageLeased(f"{path} is in use; stop the models that use it, then evict it again")
        freed = [image for image in images if is_evictable(image)]
        for image in images:
            self._evict(image) if image in freed else self._stop_prefetch(image)
        reply = Evicted(id=request_id, images=len(images))
        if freed:
            self._evictions.setdefault(freed[-1].id, []).append((client, reply))
        else:
            self._effects.reply(client, reply)
        self._start_next(now_s)

    def estimate(self, client: int, request_id: int, checkpoint: Checkpoint, tier: Tier) -> None:
        """Says how long an attach would take; `tier` is where the files are. Raises StoreFull where it would."""
        self._effects.reply(client, Estimated(id=request_id, estimate=self._estimate(checkpoint, tier)))

    def status(self, client: int, request_id: int) -> None:
        """Answers with the store's state at this moment."""
        self._effects.reply(client, Status(id=request_id, status=self._status()))

    def snapshot(self) -> StoreSnapshot:
        """The store's state and all it has counted."""
        return StoreSnapshot.of(self._status(), self._totals)

    def cancel(self, client: int, request_id: int, now_s: float) -> None:
        """Answers the waiting attach with StoreCancelled; one that was answered already keeps its answer."""
        for load, waiter in self._queue.take_waiters(client, request_id):
            self._fail(waiter, StoreCancelled("the attach was cancelled; ask again if it is still wanted"))
            self._drop_if_unwanted(load)
        self._start_next(now_s)

    def release(self, client: int, image_id: int) -> None:
        """Ends one lease; the image stays until its room is needed."""
        self._cache.release(image_id, client)

    def disconnect(self, client: int, now_s: float) -> None:
        """The client is gone: its leases and its waiting end."""
        self._cache.release_all(client)
        for load, _ in self._queue.take_waiters(client, None):
            self._drop_if_unwanted(load)
        self._start_next(now_s)

    def shut_down(self) -> None:
        """Cancels the running load and tells everybody who waits."""
        for load in self._queue.loads:
            self._fail_all(load, StoreUnavailable("the store is shutting down; ask again once it runs"))
        if self._queue.running:
            self._effects.cancel_load(self._queue.running.image)

    # What became of the effects

    def load_finished(self, result: LoadResult, now_s: float) -> None:
        """The bytes are in place: everybody who waited gets a lease."""
        load = self._queue.finish()
        assert load.started_at_s is not None
        self._cache.ready(load.image, verified=result.verified)
        self._meter.record(result.tier, load.image.checkpoint.total_bytes, now_s - load.started_at_s)
        self._totals.loaded(result.tier, load.image.checkpoint.total_bytes, now_s - load.started_at_s)
        for waiter in load.waiters:
            began_s = max(waiter.asked_at_s, load.started_at_s)
            receipt = replace(
                self._receipt(load.image, result.tier),
                queue_s=began_s - waiter.asked_at_s,
                read_s=now_s - began_s,
                direct_io=result.direct_io,
            )
            self._hand_over(load.image, waiter.client, waiter.request_id, receipt)
        self._start_next(now_s)

    def load_failed(self, error: LoaderError, now_s: float) -> None:
        """Every waiter learns why; who joined a load after it was cancelled gets a new one."""
        load = self._queue.finish()
        load.image.charged = False
        outcome: Outcome = "cancelled" if isinstance(error, StoreCancelled) else "failed"
        self._totals.failed(outcome, corrupted=isinstance(error, CheckpointCorrupted))
        if load.cancelled and load.is_wanted:
            self._queue.requeue(load)
        else:
            self._cache.forget(load.image)
            self._fail_all(load, error)
        self._start_next(now_s)

    def freed(self, image: Image, now_s: float) -> None:
        """The image's memory is back."""
        self._cache.forget(image)
        for client, reply in self._evictions.pop(image.id, []):
            self._effects.reply(client, reply)
        self._start_next(now_s)

    # Decisions

    def _image_of(self, checkpoint: Checkpoint) -> Image:
        image = self._cache.find(checkpoint.files)
        if image is not None:
            return image
        image = self._cache.admit(checkpoint)
        self._queue.add(image)
        for stale in filter(is_evictable, self._cache.at_path(checkpoint.path)):
            self._evict(stale)
        return image

    def _wanted_image_of(self, checkpoint: Checkpoint) -> Image:
        image = self._image_of(checkpoint)
        if image.state is ImageState.LOADING:
            self._queue.of(image).prefetched = True
        return image

    def _estimate(self, checkpoint: Checkpoint, tier: Tier) -> Estimate:
        image = self._cache.find(checkpoint.files)
        if image is not None and image.state is ImageState.READY:
            return IN_DRAM
        if image is None:
            self._cache.check_room(checkpoint)
        ahead = self._queue.ahead_of(image)
        return estimate_read(
            tier=tier,
            unread_bytes=checkpoint.total_bytes - (self._effects.read_bytes(image) if image else 0),
            bytes_ahead=sum(map(self._unread_bytes, ahead)),
            bandwidths=Bandwidths(measured=self._meter.bytes_per_second(), throttle_bytes_per_second=self._throttle),
        )

    def _unread_bytes(self, load: Load) -> int:
        return load.image.checkpoint.total_bytes - self._effects.read_bytes(load.image)

    def _start_next(self, now_s: float) -> None:
        while (load := self._queue.next) is not None:
            try:
                victims = self._cache.victims_for(load.image)
            except StoreFull as error:
                self._queue.remove(load)
                self._cache.forget(load.image)
                self._fail_all(load, error)
                continue
            for victim in victims:
                self._evict(victim)
            if load.image.bytes > self._cache.free_bytes:
                return  # freed() comes back here
            self._cache.charge(load.image)
            self._queue.start(load, now_s)
            self._effects.start_load(load.image)

    def _is_in_use(self, image: Image) -> bool:
        is_awaited = image.state is ImageState.LOADING and bool(self._queue.of(image).waiters)
        return is_awaited or bool(image.leases)

    def _evict(self, image: Image) -> None:
        self._cache.begin_eviction(image)
        self._effects.free(image)

    def _stop_prefetch(self, image: Image) -> None:
        load = self._queue.of(image)
        load.prefetched = False
        self._drop_if_unwanted(load)

    def _drop_if_unwanted(self, load: Load) -> None:
        if load.is_wanted or load.cancelled:
            return
        if load is self._queue.running:
            load.cancelled = True
            self._effects.cancel_load(load.image)
        else:
            self._queue.remove(load)
            self._cache.forget(load.image)

    # Answers

    def _hand_over(self, image: Image, client: int, request_id: int, receipt: LoadReceipt) -> None:
        self._cache.lease(image, client)
        reply = Attached(
            id=request_id,
            image_id=image.id,
            memory_bytes=image.bytes,
            extents=image.layout.extents,
            receipt=receipt,
        )
        self._effects.reply(client, reply, image.id)

    def _receipt(self, image: Image, tier: Tier) -> LoadReceipt:
        return LoadReceipt(
            tier=tier,
            bytes=image.checkpoint.total_bytes,
            queue_s=0.0,
            read_s=0.0,
            attach_s=0.0,
            direct_io=False,
            verified=image.verified,
            throttle_bytes_per_second=self._throttle,
        )

    def _status(self) -> StoreStatus:
        return StoreStatus(
            images=tuple(self._status_of(image) for image in self._cache.images),
            dram_bytes=self._cache.dram_bytes,
            used_bytes=self._cache.used_bytes,
            leased_bytes=self._cache.leased_bytes,
            queue_depth=self._queue.depth,
            throttle_bytes_per_second=self._throttle,
            bandwidth_bytes_per_second=self._meter.bytes_per_second(),
        )

    def _status_of(self, image: Image) -> ImageStatus:
        is_loading = image.state is ImageState.LOADING
        return ImageStatus(
            path=image.checkpoint.path,
            bytes=image.bytes,
            state=image.state.value,
            leases=image.leases.total(),
            read_bytes=self._effects.read_bytes(image) if is_loading else image.checkpoint.total_bytes,
            pinned=image.pinned,
        )

    def _fail_all(self, load: Load, error: LoaderError) -> None:
        for waiter in load.waiters:
            self._fail(waiter, error)

    def _fail(self, waiter: Waiter, error: LoaderError) -> None:
        failed = Failed(id=waiter.request_id, error=type(error).__name__, message=str(error))
        self._effects.reply(waiter.client, failed)
