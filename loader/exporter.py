"""The store's metrics for Prometheus, over HTTP on the loopback interface.

Every scrape asks for the state of that moment; nothing is kept here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from .errors import StoreUnavailable
from .metrics import StoreSnapshot
from .store_status import DeviceStatus, ImageStatus, QueueStatus

PREFIX = "serverless_triton_store"


class StoreCollector(Collector):
    """Turns a snapshot of the store into metric families."""

    def __init__(self, snapshot: Callable[[], StoreSnapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        snapshot = self._snapshot()
        yield from _totals(snapshot)
        yield from _memory(snapshot)
        yield from _devices(snapshot.status.queues)
        yield from _gpus(snapshot.status.devices)
        yield _by("images", "Images by state.", "state", Counter(i.state for i in snapshot.status.images))
        speeds = snapshot.status.bandwidth_bytes_per_second
        yield _by("bandwidth_bytes_per_second", "Moving average of past loads.", "tier", speeds)


@contextmanager
def metrics_served(port: int, snapshot: Callable[[], StoreSnapshot]) -> Iterator[int]:
    """Serves http://127.0.0.1:port/metrics within the block; 0 picks a free port. Raises StoreUnavailable."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(snapshot))
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise StoreUnavailable(f"cannot serve metrics on port {port}: {error.strerror}; choose another port") from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _totals(snapshot: StoreSnapshot) -> Iterable[Metric]:
    totals = snapshot.totals
    loads = CounterMetricFamily(f"{PREFIX}_loads", "Answered loads.", labels=("tier", "outcome"))
    for (tier, outcome), count in sorted(totals.loads.items()):
        loads.add_metric((tier, outcome), count)
    yield loads
    for name, text, by_tier in (
        ("load_bytes", "Bytes read by finished loads.", totals.bytes),
        ("load_seconds", "Time that finished loads took to read.", totals.seconds),
    ):
        family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=("tier",))
        for tier, value in sorted(by_tier.items()):
            family.add_metric((tier,), value)
        yield family
    text = "Loads that found bytes unlike their hash."
    yield CounterMetricFamily(f"{PREFIX}_verification_failures", text, value=totals.verification_failures)


def _memory(snapshot: StoreSnapshot) -> Iterable[Metric]:
    status, arena = snapshot.status, snapshot.status.arena
    for name, text, value in (
        ("dram_bytes", "Size of the arena.", status.dram_bytes),
        ("used_bytes", "Bytes of the arena that images hold.", status.used_bytes),
        ("leased_bytes", "Bytes of images with a lease.", status.leased_bytes),
        ("queued_loads", "Loads that wait or run.", status.queue_depth),
        ("leases", "Attachments of all clients.", _sum(status.images, lambda image: image.leases)),
        ("orphaned_leases", "Those whose process has no connection.", _sum(status.images, lambda i: i.orphaned_leases)),
        ("arena_page_bytes", "Size of the arena's pages.", arena.page_bytes),
        ("arena_prefaulted_bytes", "Bytes of the arena that were touched ahead.", arena.prefaulted_bytes),
        ("arena_largest_free_bytes", "Longest run of the arena that is free.", arena.largest_free_bytes),
        ("arena_quarantined_bytes", "Where loads of a killed daemon may still write.", arena.quarantined_bytes),
        ("arena_fragmentation_ratio", "1 - longest free run / free bytes.", arena.fragmentation),
        ("ssd_cache_capacity_bytes", "How much of remote checkpoints is kept.", status.ssd_cache.capacity_bytes),
        ("ssd_cache_used_bytes", "Bytes of remote checkpoints on the SSD.", status.ssd_cache.used_bytes),
        ("ssd_cache_entries", "Complete copies of remote checkpoints.", status.ssd_cache.entries),
        ("ssd_cache_refusals", "Whether something was not cached lately.", bool(status.ssd_cache.problem)),
        ("pinned_images", "Images that stay without a lease.", _sum(status.images, lambda image: image.pinned)),
    ):
        yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _devices(queues: Iterable[QueueStatus]) -> Iterable[Metric]:
    for name, text, value_of in (
        ("device_loads_running", "Loads that read from the device now.", lambda queue: bool(queue.running)),
        ("device_loads_waiting", "Loads that somebody waits for.", lambda queue: queue.waiting_loads),
        ("device_prefetches", "Prefetches that wait or are paused.", lambda queue: queue.prefetches),
        ("device_unread_bytes", "What all loads of the device have left.", lambda queue: queue.unread_bytes),
    ):
        yield _by(name, text, "device", {queue.device: value_of(queue) for queue in queues})
    speeds = GaugeMetricFamily(
        f"{PREFIX}_device_bandwidth_bytes_per_second", "Moving average of its past loads.", labels=("device", "tier")
    )
    for queue in queues:
        for tier, speed in queue.bandwidth_bytes_per_second.items():
            speeds.add_metric((queue.device, tier), speed)
    yield speeds


def _gpus(devices: Iterable[DeviceStatus]) -> Iterable[Metric]:
    for name, text, value_of in (
        ("gpu_budget_bytes", "Budget of images on the GPU.", lambda device: device.budget_bytes),
        ("gpu_used_bytes", "Bytes of the budget that are taken.", lambda device: device.used_bytes),
        ("gpu_leased_bytes", "Bytes of images with a lease.", lambda device: device.leased_bytes),
        ("gpu_held_bytes", "What a daemon before left with clients.", lambda device: device.held_bytes),
        ("gpu_images", "Images on the GPU or on their way.", lambda device: len(device.images)),
        ("gpu_copy_bytes_per_second", "Moving average of copies from DRAM.", lambda d: d.copy_bytes_per_second),
    ):
        yield _by(name, text, "gpu", {device.device: value_of(device) for device in devices})
    for name, text, value_of in (
        ("gpu_attaches", "Attaches on the GPU that were answered.", lambda device: device.attaches),
        ("gpu_copies", "Images that were copied.", lambda device: device.copies),
        ("gpu_failed_copies", "Images that did not arrive.", lambda device: device.failed_copies),
        ("gpu_copied_bytes", "Bytes of copied images.", lambda device: device.copied_bytes),
        ("gpu_copy_seconds", "Time from images' being in DRAM to their being on the GPU.", lambda d: d.copy_s),
    ):
        family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=("gpu",))
        for device in devices:
            family.add_metric((device.device,), value_of(device))
        yield family


def _sum(images: Iterable[ImageStatus], value_of: Callable[[ImageStatus], int]) -> int:
    return sum(map(value_of, images))


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=(label,))
    for value, number in sorted(values.items()):
        family.add_metric((value,), number)
    return family
