"""What the store says of itself: receipts, the states of images, queues and arena. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .cache import Image, ImageCache, ImageState
from .estimator import Throttles
from .load_queue import DeviceQueue, Load, LoadQueues
from .metrics import BandwidthMeter
from .peers import Peers
from .quarantine import Quarantine
from .receipts import LoadReceipt, Tier
from .store_status import ArenaStatus, DeviceStatus, ImageStatus, QueueStatus, SsdCacheStatus, StoreStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaFacts:
    """What the memory itself tells; `page_bytes` may change while it is being prefaulted."""

    id: str
    kind: str
    page_bytes: int
    interleaved_nodes: tuple[int, ...]
    prefaulted_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Reads the keeper's parts. `read_bytes` says how far an image's load has come."""

    cache: ImageCache
    quarantine: Quarantine
    queues: LoadQueues
    peers: Peers
    meter: BandwidthMeter
    throttles: Throttles
    arena: Callable[[], ArenaFacts]
    ssd_cache: Callable[[], SsdCacheStatus]
    devices: Callable[[], tuple[DeviceStatus, ...]]
    read_bytes: Callable[[Image], int]

    def receipt(self, image: Image, tier: Tier) -> LoadReceipt:
        """Of an attach that neither waited nor read."""
        return LoadReceipt(
            tier=tier,
            bytes=image.checkpoint.total_bytes,
            queue_s=0.0,
            read_s=0.0,
            copy_s=0.0,
            attach_s=0.0,
            direct_io=False,
            verified=image.verified,
            scattered=image.is_scattered,
            throttle_bytes_per_second=self.throttles.of(tier),
        )

    def image(self, image: Image) -> ImageStatus:
        is_complete = image.state in (ImageState.READY, ImageState.EVICTING)
        return ImageStatus(
            path=image.checkpoint.path,
            bytes=image.bytes,
            state=image.state.value,
            leases=image.leases.total(),
            orphaned_leases=sum(image.leases[client] for client in self.peers.orphans),
            read_bytes=image.checkpoint.total_bytes if is_complete else self.read_bytes(image),
            pinned=image.pinned,
            scattered=image.is_scattered,
        )

    def store(self) -> StoreStatus:
        return StoreStatus(
            images=tuple(map(self.image, self.cache.images)),
            arena=self._arena(),
            queues=self._queues(),
            devices=self.devices(),
            dram_bytes=self.cache.map.bytes,
            used_bytes=self.cache.map.used_bytes - self.quarantine.bytes,
            leased_bytes=self.cache.leased_bytes,
            queue_depth=len(self.queues.loads),
            throttle_bytes_per_second=self.throttles.ssd_bytes_per_second,
            remote_throttle_bytes_per_second=self.throttles.remote_bytes_per_second,
            bandwidth_bytes_per_second=self.meter.bytes_per_second(),
            ssd_cache=self.ssd_cache(),
        )

    def unread_bytes(self, load: Load) -> int:
        return load.image.checkpoint.total_bytes - self.read_bytes(load.image)

    def _arena(self) -> ArenaStatus:
        facts, arena_map = self.arena(), self.cache.map
        return ArenaStatus(
            kind=facts.kind,
            page_bytes=facts.page_bytes,
            interleaved_nodes=facts.interleaved_nodes,
            prefaulted_bytes=facts.prefaulted_bytes,
            free_bytes=arena_map.free_bytes,
            quarantined_bytes=self.quarantine.bytes,
            largest_free_bytes=arena_map.largest_free_bytes,
            fragmentation=arena_map.fragmentation,
        )

    def _queues(self) -> tuple[QueueStatus, ...]:
        queues = {queue.device: queue for queue in self.queues.devices}
        devices = sorted({*queues, *self.meter.devices})
        return tuple(self._queue(queues.get(device, DeviceQueue(device))) for device in devices)

    def _queue(self, queue: DeviceQueue) -> QueueStatus:
        others = [load for load in queue.loads if load is not queue.running]
        return QueueStatus(
            device=queue.device,
            running=queue.running.image.checkpoint.path if queue.running else "",
            waiting_loads=sum(bool(load.waiters) for load in others),
            prefetches=sum(not load.waiters for load in others),
            paused_loads=len(queue.paused),
            unread_bytes=sum(map(self.unread_bytes, queue.loads)),
            bandwidth_bytes_per_second=self.meter.bytes_per_second(queue.device),
        )
