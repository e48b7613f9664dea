"""Decides which images are wanted, kept and dropped, and who is told.

Pure but for its Effects: events come in as method calls with the time, what is to be done goes out through Effects.
One thread calls it, so it has no locks. Which load runs when, and what makes room for it, is load_scheduler.py's
business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .cache import Image, ImageCache, ImageState, is_evictable
from .checkpoint import Checkpoint
from .effects import Effects, LoadResult
from .errors import (
    CheckpointCorrupted,
    ImageLeased,
    ImagePinned,
    LoaderError,
    StoreCancelled,
    StoreFull,
    StoreUnavailable,
)
from .estimator import IN_DRAM, Bandwidths, Throttles, estimate_read
from .load_queue import LoadQueues, Waiter
from .load_scheduler import LoadScheduler
from .metrics import BandwidthMeter, LoadTotals, Outcome, StoreSnapshot
from .peers import Peers
from .processes import ProcessId
from .quarantine import Quarantine
from .receipts import Estimate, LoadReceipt, Tier
from .replies import Attached, Estimated, Evicted, Failed, Pinned, Prefetching, Progress, Reclaimed, Status, Unpinned
from .reports import Reporter
from .requests import LeaseCount
from .state import StoreState
from .succession import Succession

_CANCELLED = "the attach was cancelled; ask again if it is still wanted"
_EVICTION_GOES_ON = "nobody waits for the eviction any more, but it goes on; the status says which images there are"


class Keeper:
    """The store's decisions over one ImageCache."""

    def __init__(self, cache: ImageCache, effects: Effects, throttles: Throttles | None = None) -> None:
        self._cache = cache
        self._effects = effects
        self._throttles = throttles or Throttles()
        self._meter = BandwidthMeter()
        self._totals = LoadTotals()
        self._queues = LoadQueues()
        peers = Peers()
        self._quarantine = Quarantine(cache.map)
        self._succession = Succession(cache, self._quarantine, peers, effects)
        self._loads = LoadScheduler(cache, self._queues, self._quarantine, self._succession, effects)
        # Attaches to images that are being moved.
        self._arrivals: list[tuple[Image, Waiter]] = []
        self._report = Reporter(
            cache=cache,
            quarantine=self._quarantine,
            queues=self._queues,
            peers=peers,
            meter=self._meter,
            throttles=self._throttles,
            arena=effects.arena,
            ssd_cache=effects.ssd_cache,
            devices=effects.devices,
            read_bytes=effects.read_bytes,
        )

    # Who is there

    def adopt(self, state: StoreState, first_client: int) -> int:
        """Takes over what a predecessor left, numbering lease holders from `first_client`; returns the next number.

        Where its loads wrote nothing else may before end_quarantine().
        """
        return self._succession.adopt(state, first_client)

    def end_quarantine(self, now_s: float) -> None:
        """The reads of a daemon that was killed have ended, QUARANTINE_S after it."""
        self._quarantine.end()
        self._succession.save()
        self._loads.advance(now_s)

    def connect(self, client: int, process: ProcessId) -> None:
        """A client is there."""
        self._succession.connect(client, process)

    def reclaim(
        self, client: int, request_id: int, arena_id: str, session: str, leases: Sequence[LeaseCount], now_s: float
    ) -> None:
        """Gives a client those leases that its session has without a connection, and ends the others of it."""
        own_arena_id = self._effects.arena().id
        self._succession.name(client, session)
        reclaimed = self._succession.reclaim(client, leases if arena_id == own_arena_id else ())
        self._effects.reply(client, Reclaimed(id=request_id, arena_id=own_arena_id, leases=reclaimed))
        self._loads.advance(now_s)

    def disconnect(self, client: int, now_s: float) -> None:
        """The connection is gone: the client's waiting ends now, its leases with its process, or it reclaims them."""
        self._stop_waiting(client, None)
        self._loads.stop_awaiting_evictions(client, None)
        self._succession.disconnect(client)
        self._loads.advance(now_s)

    def process_ended(self, client: int, now_s: float) -> None:
        """The process of an orphan is gone, and its tensors with it."""
        self._succession.process_ended(client)
        self._loads.advance(now_s)

    # Requests

    def attach(
        self, client: int, request_id: int, session: str, checkpoint: Checkpoint, now_s: float, *, progress: bool
    ) -> None:
        """Leases the image at once, or once it is complete and in its place. Raises StoreFull."""
        self._succession.name(client, session)
        image = self._image_of(checkpoint)
        waiter = Waiter(client=client, request_id=request_id, asked_at_s=now_s, wants_progress=progress)
        if image.state is not ImageState.READY:
            self._queues.of(image).waiters.append(waiter)
        elif image.moving:
            self._arrivals.append((image, waiter))
        else:
            self._hand_over_ready(image, waiter, now_s)
        self._loads.advance(now_s)

    def prefetch(self, client: int, request_id: int, checkpoint: Checkpoint, now_s: float) -> None:
        """Queues a load that goes on without anybody waiting. Raises StoreFull."""
        image = self._wanted_image_of(checkpoint)
        self._loads.advance(now_s)
        self._effects.reply(client, Prefetching(id=request_id, image=self._report.image(image)))

    def pin(self, client: int, request_id: int, checkpoint: Checkpoint, now_s: float) -> None:
        """As prefetch(), and the image stays until it is unpinned. Raises StoreFull."""
        image = self._wanted_image_of(checkpoint)
        image.pinned = True
        self._succession.save()
        self._loads.advance(now_s)
        self._effects.reply(client, Pinned(id=request_id, image=self._report.image(image)))

    def unpin(self, client: int, request_id: int, path: str, now_s: float) -> None:
        """Lets every version of a checkpoint go again when its room is needed."""
        images = [image for image in self._cache.at_path(path) if image.pinned]
        for image in images:
            image.pinned = False
        self._succession.save()
        self._effects.reply(client, Unpinned(id=request_id, images=len(images)))
        self._loads.advance(now_s)

    def evict(self, client: int, request_id: int, path: str, now_s: float, *, on_devices: Sequence[int] = ()) -> None:
        """Drops every version of a checkpoint. Raises ImageLeased or ImagePinned, and then drops none.

        The answer counts the images `on_devices` that the caller drops, too, and waits until they are freed.
        """
        images = self._cache.at_path(path)
        if any(image.pinned for image in images):
            raise ImagePinned(f"{path} is pinned; unpin it, then evict it again")
        if any(map(self._is_in_use, images)):
            raise ImageLeased(
                f"{path} is in use: a process still holds a tensor of it, or waits for it; drop its tensors or stop "
                "it, then evict again"
            )
        evicted = Evicted(id=request_id, images=len(images) + len(on_devices))
        self._loads.evict_all(client, evicted, images, on_devices)
        self._succession.save()
        self._loads.advance(now_s)

    def estimate(self, client: int, request_id: int, checkpoint: Checkpoint, tier: Tier) -> None:
        """Says how long an attach would take; `tier` is where the files are. Raises StoreFull where it would."""
        self._effects.reply(client, Estimated(id=request_id, estimate=self._estimate(checkpoint, tier)))

    def status(self, client: int, request_id: int) -> None:
        """Answers with the store's state at this moment."""
        self._effects.reply(client, Status(id=request_id, status=self._report.store()))

    def snapshot(self) -> StoreSnapshot:
        """The store's state and all it has counted."""
        return StoreSnapshot.of(self._report.store(), self._totals)

    def cancel(self, client: int, request_id: int, now_s: float) -> None:
        """Answers the waiting attach or eviction with StoreCancelled; one that was answered already keeps its answer.

        What was to be dropped goes all the same.
        """
        for waiter in self._stop_waiting(client, request_id):
            self._effects.reply(waiter.client, waiter.failure(StoreCancelled(_CANCELLED)))
        for evict_id in self._loads.stop_awaiting_evictions(client, request_id):
            failed = Failed(id=evict_id, error=StoreCancelled.__name__, message=_EVICTION_GOES_ON)
            self._effects.reply(client, failed)
        self._loads.advance(now_s)

    def release(self, client: int, image_id: int, now_s: float) -> None:
        """Ends one lease; the image stays until its room is needed."""
        self._cache.release(image_id, client)
        self._succession.save()
        self._loads.advance(now_s)

    def tell_progress(self) -> bool:
        """Sends a notice to everybody who waits and asked for them; False where nobody does."""
        asked = [
            (load.image, waiter) for load in self._queues.loads for waiter in load.waiters if waiter.wants_progress
        ]
        for image, waiter in asked:
            notice = Progress(
                id=waiter.request_id,
                bytes_done=self._effects.read_bytes(image),
                bytes_total=image.checkpoint.total_bytes,
                bytes_ahead=self._bytes_ahead(image.checkpoint.device, image),
            )
            self._effects.reply(waiter.client, notice)
        return bool(asked)

    def shut_down(self) -> None:
        """Cancels the loads that have begun and tells everybody who waits."""
        error = StoreUnavailable("the store is shutting down; ask again once it runs")
        waiters = [waiter for load in self._queues.loads for waiter in load.waiters]
        for waiter in [*waiters, *(waiter for _, waiter in self._arrivals)]:
            self._effects.reply(waiter.client, waiter.failure(error))
        for load in self._queues.loads:
            if load.started_at_s is not None:
                self._effects.cancel_load(load.image)

    # What became of the effects

    def load_finished(self, image: Image, result: LoadResult, now_s: float) -> None:
        """The bytes are in place: everybody who waited gets a lease."""
        load = self._queues.of(image)
        self._queues.remove(load)
        assert load.started_at_s is not None
        self._cache.ready(image, verified=result.verified)
        paused_s = load.paused_s + (now_s - load.paused_at_s if load.paused_at_s is not None else 0.0)
        duration_s = now_s - load.started_at_s - paused_s
        if result.is_of_one_tier:
            self._meter.record(image.checkpoint.device, result.tier, image.checkpoint.total_bytes, duration_s)
        self._totals.loaded(result.tier, image.checkpoint.total_bytes, duration_s)
        for waiter in load.waiters:
            began_s = max(waiter.asked_at_s, load.started_at_s)
            receipt = replace(
                self._report.receipt(image, result.tier),
                queue_s=began_s - waiter.asked_at_s,
                read_s=now_s - began_s,
                direct_io=result.direct_io,
            )
            self._hand_over(image, waiter, receipt)
        if load.cancelled:
            self._loads.end_cancelled(load)
        self._succession.save()
        self._loads.advance(now_s)

    def load_failed(self, image: Image, error: LoaderError, now_s: float) -> None:
        """Every waiter learns why; who joined a load after it was cancelled gets a new one."""
        load = self._queues.of(image)
        self._queues.remove(load)
        self._cache.empty(image)
        outcome: Outcome = "cancelled" if isinstance(error, StoreCancelled) else "failed"
        self._totals.failed(outcome, corrupted=isinstance(error, CheckpointCorrupted))
        if load.cancelled and load.is_wanted:
            self._loads.end_cancelled(load)
            self._queues.requeue(load)
        else:
            self._loads.give_up(load, error)
        self._succession.save()
        self._loads.advance(now_s)

    def moved(self, now_s: float) -> None:
        """The moves are done: images are where they should be, and the load that they made room for may begin."""
        load = self._loads.end_moves()
        arrivals, self._arrivals = self._arrivals, []
        for image, waiter in arrivals:
            self._hand_over_ready(image, waiter, now_s)
        if load.cancelled:
            self.load_failed(load.image, StoreCancelled(_CANCELLED), now_s)
        else:
            self._loads.begin(load, now_s)
            self._loads.advance(now_s)

    def freed_on_device(self, image_id: int) -> None:
        """The memory of an image on a device is back."""
        self._loads.freed_on_device(image_id)

    # Decisions

    def _image_of(self, checkpoint: Checkpoint) -> Image:
        image = self._cache.find(checkpoint.files)
        if image is not None:
            return image
        image = self._cache.admit(checkpoint)
        self._queues.add(image)
        for stale in filter(is_evictable, self._cache.at_path(checkpoint.path)):
            self._loads.evict(stale)
        return image

    def _wanted_image_of(self, checkpoint: Checkpoint) -> Image:
        image = self._image_of(checkpoint)
        if image.state is not ImageState.READY:
            self._queues.of(image).prefetched = True
        return image

    def _estimate(self, checkpoint: Checkpoint, tier: Tier) -> Estimate:
        image = self._cache.find(checkpoint.files)
        if image is not None and image.state is ImageState.READY:
            return IN_DRAM
        if image is None:
            self._cache.check_room(checkpoint)
        measured = self._meter.bytes_per_second(checkpoint.device)
        return estimate_read(
            tier=tier,
            unread_bytes=checkpoint.total_bytes - (self._effects.read_bytes(image) if image else 0),
            bytes_ahead=self._bytes_ahead(checkpoint.device, image),
            bandwidths=Bandwidths(measured=measured, throttle_bytes_per_second=self._throttles.of(tier)),
        )

    def _bytes_ahead(self, device: str, image: Image | None) -> int:
        """What an attach of the image (None: of one that is not here) would wait for before its own load begins."""
        return sum(map(self._report.unread_bytes, self._queues.ahead_of_attach(device, image)))

    def _is_in_use(self, image: Image) -> bool:
        is_loading = image.state in (ImageState.EMPTY, ImageState.LOADING)
        is_awaited = is_loading and bool(self._queues.of(image).waiters)
        return is_awaited or bool(image.leases) or any(arrived is image for arrived, _ in self._arrivals)

    def _stop_waiting(self, client: int, request_id: int | None) -> list[Waiter]:
        """Takes the waiters of one request (None: of all) of a client out, and stops what nobody else wants."""
        taken = self._queues.take_waiters(client, request_id)
        for load, _ in taken:
            self._loads.drop_if_unwanted(load)
        leaving = [
            arrival
            for arrival in self._arrivals
            if arrival[1].client == client and request_id in (None, arrival[1].request_id)
        ]
        self._arrivals = [arrival for arrival in self._arrivals if arrival not in leaving]
        return [waiter for _, waiter in [*taken, *leaving]]

    # Answers

    def _hand_over_ready(self, image: Image, waiter: Waiter, now_s: float) -> None:
        self._totals.loaded("dram", 0, 0.0)
        self._hand_over(image, waiter, replace(self._report.receipt(image, "dram"), queue_s=now_s - waiter.asked_at_s))

    def _hand_over(self, image: Image, waiter: Waiter, receipt: LoadReceipt) -> None:
        try:
            self._succession.lease(image, waiter.client)
        except StoreFull as error:
            self._effects.reply(waiter.client, waiter.failure(error))
            return
        reply = Attached(
            id=waiter.request_id,
            image_id=image.id,
            arena_id=self._effects.arena().id,
            extents=image.extents,
            receipt=receipt,
        )
        self._effects.reply(waiter.client, reply)
