"""Decides which images are brought onto GPUs, kept there and dropped, and who is told.

Pure but for its Effects, as keeper.py is, and called by the same thread. Bringing the bytes into DRAM is the keeper's
business: this one leases them there for as long as a copy lasts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from .checkpoint import Checkpoint
from .device_effects import DeviceEffects
from .device_estimator import ON_GPU, estimate_copy
from .device_images import DeviceImage, DeviceImages, DeviceImageState
from .device_metrics import DeviceMeter
from .device_state import DeviceLeaseRecord, DeviceState
from .errors import DeviceUnavailable, ImageLeased, LoaderError, StoreCancelled, StoreFull, StoreUnavailable
from .load_queue import Waiter
from .peers import Holder, Peers
from .processes import ProcessId
from .receipts import Estimate, LoadReceipt
from .replies import DeviceAttached, DevicesReclaimed, Progress
from .requests import AttachDevice, LeaseCount, ReclaimDevices
from .store_status import DeviceStatus

_CANCELLED = "the attach was cancelled; ask again if it is still wanted"


@dataclass(slots=True, kw_only=True)
class _Arrival:
    """An image on its way onto its device, and who waits for it. The receipt is that of its bytes' way into DRAM."""

    image: DeviceImage
    waiters: list[Waiter] = field(default_factory=list)
    receipt: LoadReceipt | None = None
    loaded_at_s: float = 0.0


class DeviceKeeper:
    """The decisions over the images of all devices. A budget of 0 bytes means that there is no GPU tier."""

    def __init__(self, budget_bytes: int, effects: DeviceEffects) -> None:
        self._images = DeviceImages(budget_bytes)
        self._effects = effects
        self._peers = Peers()
        self._arrivals: dict[int, _Arrival] = {}
        self._meters: dict[str, DeviceMeter] = {}
        self._saved: DeviceState | None = None

    # Who is there

    def adopt(self, state: DeviceState, first_client: int) -> int:
        """Counts what a predecessor's clients hold, as holders from `first_client` on; returns the next number."""
        self._images.adopt_next_id(state.next_image_id)
        numbers: dict[Holder, int] = {}
        for lease in state.leases:
            numbers.setdefault(lease.holder, first_client + len(numbers))
        for image_id in sorted({lease.image_id for lease in state.leases}):
            held = [lease for lease in state.leases if lease.image_id == image_id]
            leases = [(numbers[lease.holder], lease.count) for lease in held]
            self._images.adopt(image_id, held[0].device, held[0].bytes, leases)
        for holder, orphan in numbers.items():
            self._peers.orphan(orphan, holder)
            self._effects.watch(orphan, holder.process)
        return first_client + len(numbers)

    def connect(self, client: int, process: ProcessId) -> None:
        """A client is there."""
        self._peers.connect(client, process)

    def reclaim(self, client: int, request: ReclaimDevices, now_s: float) -> None:
        """Gives a client those leases that its session has without a connection, and ends the others of it."""
        self._peers.name(client, request.session)
        orphans = self._peers.orphans_of(self._peers.holder_of(client))
        taken: Counter[int] = Counter()
        for lease in request.leases:
            for orphan in orphans:
                wanted = lease.count - taken[lease.image_id]
                taken[lease.image_id] += self._images.pass_on(lease.image_id, orphan, client, wanted)
        for orphan in orphans:
            self._images.release_all(orphan)
            self._peers.forget(orphan)
            self._effects.unwatch(orphan)
        self._save()
        counts = tuple(LeaseCount(image_id=image_id, count=count) for image_id, count in sorted(taken.items()) if count)
        self._effects.reply(client, DevicesReclaimed(id=request.id, leases=counts))
        self._advance(now_s)

    def disconnect(self, client: int, now_s: float) -> None:
        """The connection is gone: the client's waiting ends now, its leases with its process, or it reclaims them."""
        self._stop_waiting(client, None)
        if self._images.is_leased_by(client):
            holder = self._peers.holder_of(client)
            self._peers.orphan(client, holder)
            self._effects.watch(client, holder.process)
        else:
            self._peers.forget(client)
        self._advance(now_s)

    def process_ended(self, client: int, now_s: float) -> None:
        """The process of an orphan is gone, and its tensors with it."""
        self._images.release_all(client)
        self._peers.forget(client)
        self._save()
        self._advance(now_s)

    # Requests

    def attach(self, client: int, request: AttachDevice, checkpoint: Checkpoint, now_s: float) -> None:
        """Leases the image on that device at once, or once it is there. Raises StoreFull, DeviceUnavailable."""
        self._check_device(request.device)
        self._peers.name(client, request.session)
        device, image = request.device, self._images.find(request.device, checkpoint.files)
        waiter = Waiter(client=client, request_id=request.id, asked_at_s=now_s, wants_progress=request.progress)
        if image is not None and image.state is DeviceImageState.READY:
            self._meter_of(device).attached()
            self._hand_over(image, waiter, self._receipt_of_resident(image))
            return
        if image is None:
            image = self._images.admit(device, checkpoint)
            self._arrivals[image.id] = _Arrival(image=image)
            self._evict_stale(image)
        self._arrivals[image.id].waiters.append(waiter)
        if image.state is DeviceImageState.COPYING:
            self._tell([waiter], _all_in_dram(checkpoint.total_bytes))
        self._advance(now_s)

    def release(self, client: int, image_id: int, now_s: float) -> None:
        """Ends one lease; the image stays until its room is needed."""
        self._images.release(image_id, client)
        self._save()
        self._advance(now_s)

    def cancel(self, client: int, request_id: int, now_s: float) -> bool:
        """Answers the waiting attach with StoreCancelled; False where there is none."""
        stopped = self._stop_waiting(client, request_id)
        for waiter in stopped:
            self._effects.reply(waiter.client, waiter.failure(StoreCancelled(_CANCELLED)))
        self._advance(now_s)
        return bool(stopped)

    def evictable(self, path: str) -> list[int]:
        """The images that evict() would drop. Raises ImageLeased where somebody uses or awaits one on a device."""
        images = self._images.at_path(path)
        for image in images:
            if image.state is not DeviceImageState.READY:
                raise ImageLeased(f"{path} is on its way to {image.device}; once it is there and released, evict again")
            if image.leases:
                raise ImageLeased(
                    f"{path} is in use on {image.device}: a process still holds a tensor of it; drop its tensors or "
                    "stop it, then evict again"
                )
        return [image.id for image in images]

    def evict(self, path: str) -> None:
        """Drops every version of a checkpoint from every device. evictable() said that nobody uses one."""
        for image in self._images.at_path(path):
            if image.is_evictable:
                self._evict(image)

    def estimate(self, checkpoint: Checkpoint, device: str, into_dram: Callable[[], Estimate]) -> Estimate:
        """How long an attach would take; `into_dram` says how long one in DRAM would, and is asked where that matters.

        Raises StoreFull, DeviceUnavailable, and what `into_dram` raises.
        """
        self._check_device(device)
        image = self._images.find(device, checkpoint.files)
        if image is not None and image.state is DeviceImageState.READY:
            return ON_GPU
        if image is None:
            self._images.check_room(device, checkpoint)
        return estimate_copy(
            into_dram=into_dram(),
            copy_bytes=checkpoint.total_bytes,
            measured_bytes_per_second=self._meter_of(device).bytes_per_second,
        )

    def status(self) -> tuple[DeviceStatus, ...]:
        """Of every device that was ever used."""
        devices = sorted({image.device for image in self._images.all} | self._meters.keys())
        budget_bytes = self._images.budget_bytes
        return tuple(self._meter_of(device).status(self._images.on(device), budget_bytes) for device in devices)

    def shut_down(self) -> None:
        """Tells everybody who waits."""
        error = StoreUnavailable("the store is shutting down; ask again once it runs")
        for arrival in self._arrivals.values():
            for waiter in arrival.waiters:
                self._effects.reply(waiter.client, waiter.failure(error))
            arrival.waiters.clear()

    # What became of the effects

    def allocated(self, image: DeviceImage, now_s: float) -> None:
        """The memory is there; now for its content."""
        if not self._arrivals[image.id].waiters:
            self._give_up(self._arrivals[image.id], StoreCancelled(_CANCELLED), now_s)
            return
        image.state = DeviceImageState.LOADING
        self._effects.lease_dram(image)

    def loading(self, image: DeviceImage, news: Progress) -> None:
        """How far the bytes are on their way into DRAM."""
        self._tell(self._arrivals[image.id].waiters, news)

    def loaded(self, image: DeviceImage, receipt: LoadReceipt, now_s: float) -> None:
        """The bytes are in DRAM and stay there until release_dram()."""
        arrival = self._arrivals[image.id]
        arrival.receipt, arrival.loaded_at_s = receipt, now_s
        image.state = DeviceImageState.COPYING
        self._tell(arrival.waiters, _all_in_dram(receipt.bytes))
        self._effects.copy(image)

    def copied(self, image: DeviceImage, now_s: float) -> None:
        """The bytes are on the device: everybody who waited gets a lease."""
        arrival = self._arrivals.pop(image.id)
        assert arrival.receipt is not None
        self._effects.release_dram(image)
        image.state, image.verified = DeviceImageState.READY, arrival.receipt.verified
        self._images.touch(image)
        self._meter_of(image.device).copied(arrival.receipt, now_s - arrival.loaded_at_s)
        self._meter_of(image.device).attached(len(arrival.waiters))
        for waiter in arrival.waiters:
            self._hand_over(image, waiter, _receipt(arrival.receipt, waiter, arrival.loaded_at_s, now_s))
        self._advance(now_s)

    def failed(self, image: DeviceImage, error: LoaderError, now_s: float) -> None:
        """Allocating, loading or copying came to nothing: every waiter learns why."""
        arrival = self._arrivals[image.id]
        if image.state is DeviceImageState.COPYING:
            self._effects.release_dram(image)
        if not isinstance(error, StoreCancelled):
            self._meter_of(image.device).failed()
        elif arrival.waiters:  # they joined after it was cancelled
            image.state = DeviceImageState.LOADING
            self._effects.lease_dram(image)
            return
        self._give_up(arrival, error, now_s)

    def freed(self, image: DeviceImage, now_s: float) -> None:
        """The image's memory is back."""
        self._images.forget(image)
        self._advance(now_s)

    # Decisions

    def _check_device(self, device: str) -> None:
        if not self._images.budget_bytes:
            raise DeviceUnavailable("this store keeps nothing on GPUs; start it with --gpu-bytes")
        known = self._effects.known_devices()
        if device not in known:
            raise DeviceUnavailable(
                f"the store sees no device {device}; there are {', '.join(known) or 'none'}: check nvidia-smi -L and "
                "the store's CUDA_VISIBLE_DEVICES"
            )

    def _advance(self, now_s: float) -> None:
        waiting = [each for each in self._arrivals.values() if each.image.state is DeviceImageState.WAITING]
        blocked: set[str] = set()
        for arrival in waiting:
            if arrival.image.device not in blocked and not self._try_to_begin(arrival):
                blocked.add(arrival.image.device)

    def _try_to_begin(self, arrival: _Arrival) -> bool:
        """False where it has to wait for room, and those behind it on its device, too."""
        image = arrival.image
        try:
            victims = self._images.victims_for(image)
        except StoreFull as error:
            del self._arrivals[image.id]
            self._images.forget(image)
            for waiter in arrival.waiters:
                self._effects.reply(waiter.client, waiter.failure(error))
            return True
        for victim in victims:
            self._evict(victim)
        if not self._images.fits(image):
            return False  # freed() comes back here
        image.state = DeviceImageState.ALLOCATING
        self._effects.allocate(image)
        return True

    def _evict_stale(self, image: DeviceImage) -> None:
        for other in self._images.at_path(image.path):
            if other is not image and other.is_evictable and other.device == image.device:
                self._evict(other)

    def _evict(self, image: DeviceImage) -> None:
        image.state = DeviceImageState.EVICTING
        self._effects.free(image)

    def _give_up(self, arrival: _Arrival, error: LoaderError, now_s: float) -> None:
        del self._arrivals[arrival.image.id]
        for waiter in arrival.waiters:
            self._effects.reply(waiter.client, waiter.failure(error))
        self._evict(arrival.image)
        self._advance(now_s)

    def _stop_waiting(self, client: int, request_id: int | None) -> list[Waiter]:
        """Takes the waiters of one request (None: of all) of a client out, and stops what nobody else wants.

        A copy that has begun goes on: it takes a moment, and the image may be wanted again.
        """
        stopped = []
        for arrival in list(self._arrivals.values()):
            gone = [w for w in arrival.waiters if w.client == client and request_id in (None, w.request_id)]
            arrival.waiters = [waiter for waiter in arrival.waiters if waiter not in gone]
            stopped += gone
            if gone and not arrival.waiters:
                self._stop(arrival)
        return stopped

    def _stop(self, arrival: _Arrival) -> None:
        if arrival.image.state is DeviceImageState.WAITING:
            del self._arrivals[arrival.image.id]
            self._images.forget(arrival.image)
        elif arrival.image.state is DeviceImageState.LOADING:
            self._effects.stop_waiting_for_dram(arrival.image)

    # Answers

    def _hand_over(self, image: DeviceImage, waiter: Waiter, receipt: LoadReceipt) -> None:
        self._images.lease(image, waiter.client)
        try:
            self._save()
        except StoreFull as error:
            self._images.release(image.id, waiter.client)
            self._effects.reply(waiter.client, waiter.failure(error))
            return
        reply = DeviceAttached(
            id=waiter.request_id,
            image_id=image.id,
            device=image.device,
            memory_bytes=image.bytes,
            files=image.files,
            receipt=receipt,
        )
        self._effects.hand_over(waiter.client, reply)

    def _tell(self, waiters: Sequence[Waiter], news: Progress) -> None:
        for waiter in waiters:
            if waiter.wants_progress:
                self._effects.reply(waiter.client, replace(news, id=waiter.request_id))

    def _receipt_of_resident(self, image: DeviceImage) -> LoadReceipt:
        assert image.checkpoint is not None
        return LoadReceipt(
            tier="gpu",
            bytes=image.checkpoint.total_bytes,
            queue_s=0.0,
            read_s=0.0,
            copy_s=0.0,
            attach_s=0.0,
            direct_io=False,
            verified=image.verified,
            scattered=False,
            throttle_bytes_per_second=0,
        )

    def _meter_of(self, device: str) -> DeviceMeter:
        return self._meters.setdefault(device, DeviceMeter(device))

    def _save(self) -> None:
        counts: Counter[tuple[int, Holder]] = Counter()
        for image in self._images.all:
            for client, count in image.leases.items():
                counts[image.id, self._peers.holder_of(client)] += count
        state = DeviceState(
            next_image_id=self._images.next_id,
            leases=tuple(self._record(image_id, holder, count) for (image_id, holder), count in counts.items()),
        )
        if state != self._saved:
            self._effects.save_devices(state)
            self._saved = state

    def _record(self, image_id: int, holder: Holder, count: int) -> DeviceLeaseRecord:
        image = self._images.get(image_id)
        assert image is not None
        return DeviceLeaseRecord(image_id=image_id, device=image.device, bytes=image.bytes, holder=holder, count=count)


def _all_in_dram(total_bytes: int) -> Progress:
    return Progress(id=0, bytes_done=total_bytes, bytes_total=total_bytes, bytes_ahead=0)


def _receipt(into_dram: LoadReceipt, waiter: Waiter, loaded_at_s: float, now_s: float) -> LoadReceipt:
    """The waiter's own: its parts add up to the time that it waited."""
    loading_s = max(0.0, loaded_at_s - waiter.asked_at_s)
    queue_s = min(into_dram.queue_s, loading_s)
    return replace(
        into_dram,
        queue_s=queue_s,
        read_s=loading_s - queue_s,
        copy_s=now_s - max(waiter.asked_at_s, loaded_at_s),
        scattered=False,
    )
