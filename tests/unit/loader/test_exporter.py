from collections import Counter

from prometheus_client import CollectorRegistry, generate_latest

from serverless_triton.loader.exporter import StoreCollector
from serverless_triton.loader.metrics import LoadTotals, StoreSnapshot
from serverless_triton.loader.store_status import (
    ArenaStatus,
    DeviceImageStatus,
    DeviceStatus,
    ImageStatus,
    QueueStatus,
    SsdCacheStatus,
    State,
    StoreStatus,
)


def image(path: str, state: State, leases: int, *, orphaned_leases: int = 0, pinned: bool = False) -> ImageStatus:
    return ImageStatus(
        path=path,
        bytes=5,
        state=state,
        leases=leases,
        orphaned_leases=orphaned_leases,
        read_bytes=5,
        pinned=pinned,
        scattered=False,
    )


PREFIX = "serverless_triton_store_"
ARENA = ArenaStatus(
    kind="tmpfs",
    page_bytes=1 << 21,
    interleaved_nodes=(0, 1),
    prefaulted_bytes=60,
    free_bytes=85,
    quarantined_bytes=9,
    largest_free_bytes=68,
    fragmentation=0.2,
)
QUEUE = QueueStatus(
    device="disk:5",
    running="/c",
    waiting_loads=1,
    prefetches=2,
    paused_loads=1,
    unread_bytes=9,
    bandwidth_bytes_per_second={"ssd": 1e9},
)
DEVICE = DeviceStatus(
    device="GPU-1",
    budget_bytes=90,
    used_bytes=40,
    leased_bytes=30,
    held_bytes=10,
    images=(DeviceImageStatus(path="/a", bytes=30, state="ready", leases=2),),
    attaches=5,
    copies=3,
    failed_copies=1,
    copied_bytes=120,
    copy_s=0.5,
    copy_bytes_per_second=2e9,
)
STATUS = StoreStatus(
    images=(
        image("/a", "ready", 2, orphaned_leases=1, pinned=True),
        image("/b", "ready", 1),
        image("/c", "loading", 0),
    ),
    arena=ARENA,
    queues=(QUEUE,),
    devices=(DEVICE,),
    dram_bytes=100,
    used_bytes=15,
    leased_bytes=10,
    queue_depth=1,
    throttle_bytes_per_second=0,
    remote_throttle_bytes_per_second=0,
    bandwidth_bytes_per_second={"ssd": 1.5e9},
    ssd_cache=SsdCacheStatus(capacity_bytes=50, used_bytes=40, entries=3, urls=("https://a/b",), problem="no room"),
)


def scraped() -> list[str]:
    """The samples of one scrape, without what all their names begin with."""
    totals = LoadTotals(loads=Counter({("ssd", "loaded"): 3, ("none", "failed"): 1}), verification_failures=1)
    totals.loaded("ssd", 7, 0.5)
    registry = CollectorRegistry()
    registry.register(StoreCollector(lambda: StoreSnapshot.of(STATUS, totals)))
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert all(line.startswith(PREFIX) for line in lines)
    return sorted(line.removeprefix(PREFIX) for line in lines)


def test_a_scrape_shows_the_store_as_it_is() -> None:
    others = ("gpu_", "device_", "arena_")
    assert [line for line in scraped() if not line.startswith(others)] == sorted(
        [
            'loads_total{outcome="loaded",tier="ssd"} 4.0',
            'loads_total{outcome="failed",tier="none"} 1.0',
            'load_bytes_total{tier="ssd"} 7.0',
            'load_seconds_total{tier="ssd"} 0.5',
            "verification_failures_total 1.0",
            "dram_bytes 100.0",
            "used_bytes 15.0",
            "leased_bytes 10.0",
            "queued_loads 1.0",
            "ssd_cache_capacity_bytes 50.0",
            "ssd_cache_used_bytes 40.0",
            "ssd_cache_entries 3.0",
            "ssd_cache_refusals 1.0",
            "leases 3.0",
            "orphaned_leases 1.0",
            "pinned_images 1.0",
            'images{state="loading"} 1.0',
            'images{state="ready"} 2.0',
            'bandwidth_bytes_per_second{tier="ssd"} 1.5e+09',
        ]
    )


def test_a_scrape_shows_each_gpu() -> None:
    assert [line for line in scraped() if line.startswith("gpu_")] == sorted(
        [
            'gpu_budget_bytes{gpu="GPU-1"} 90.0',
            'gpu_used_bytes{gpu="GPU-1"} 40.0',
            'gpu_leased_bytes{gpu="GPU-1"} 30.0',
            'gpu_held_bytes{gpu="GPU-1"} 10.0',
            'gpu_images{gpu="GPU-1"} 1.0',
            'gpu_copy_bytes_per_second{gpu="GPU-1"} 2e+09',
            'gpu_attaches_total{gpu="GPU-1"} 5.0',
            'gpu_copies_total{gpu="GPU-1"} 3.0',
            'gpu_failed_copies_total{gpu="GPU-1"} 1.0',
            'gpu_copied_bytes_total{gpu="GPU-1"} 120.0',
            'gpu_copy_seconds_total{gpu="GPU-1"} 0.5',
        ]
    )


def test_a_scrape_shows_the_arena() -> None:
    assert [line for line in scraped() if line.startswith("arena_")] == sorted(
        [
            "arena_page_bytes 2.097152e+06",
            "arena_prefaulted_bytes 60.0",
            "arena_largest_free_bytes 68.0",
            "arena_quarantined_bytes 9.0",
            "arena_fragmentation_ratio 0.2",
        ]
    )


def test_a_scrape_shows_the_queue_of_each_device() -> None:
    assert [line for line in scraped() if line.startswith("device_")] == sorted(
        [
            'device_loads_running{device="disk:5"} 1.0',
            'device_loads_waiting{device="disk:5"} 1.0',
            'device_prefetches{device="disk:5"} 2.0',
            'device_unread_bytes{device="disk:5"} 9.0',
            'device_bandwidth_bytes_per_second{device="disk:5",tier="ssd"} 1e+09',
        ]
    )
