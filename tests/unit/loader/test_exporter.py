from collections import Counter

from prometheus_client import CollectorRegistry, generate_latest

from serverless_triton.loader.exporter import StoreCollector
from serverless_triton.loader.messages import ImageStatus, StoreStatus
from serverless_triton.loader.metrics import LoadTotals, StoreSnapshot

IMAGES = (
    ImageStatus(path="/a", bytes=5, state="ready", leases=2, read_bytes=5, pinned=True),
    ImageStatus(path="/b", bytes=5, state="ready", leases=1, read_bytes=5, pinned=False),
    ImageStatus(path="/c", bytes=5, state="loading", leases=0, read_bytes=1, pinned=False),
)
STATUS = StoreStatus(
    images=IMAGES,
    dram_bytes=100,
    used_bytes=15,
    leased_bytes=10,
    queue_depth=1,
    throttle_bytes_per_second=0,
    bandwidth_bytes_per_second={"ssd": 1.5e9},
)


def test_a_scrape_shows_the_store_as_it_is() -> None:
    totals = LoadTotals(loads=Counter({("ssd", "loaded"): 3, ("none", "failed"): 1}), verification_failures=1)
    totals.loaded("ssd", 7, 0.5)
    registry = CollectorRegistry()
    registry.register(StoreCollector(lambda: StoreSnapshot.of(STATUS, totals)))

    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert sorted(lines) == sorted(
        f"serverless_triton_store_{line}"
        for line in (
            'loads_total{outcome="loaded",tier="ssd"} 4.0',
            'loads_total{outcome="failed",tier="none"} 1.0',
            'load_bytes_total{tier="ssd"} 7.0',
            'load_seconds_total{tier="ssd"} 0.5',
            "verification_failures_total 1.0",
            "dram_bytes 100.0",
            "used_bytes 15.0",
            "leased_bytes 10.0",
            "queued_loads 1.0",
            "leases 3.0",
            "pinned_images 1.0",
            'images{state="loading"} 1.0',
            'images{state="ready"} 2.0',
            'bandwidth_bytes_per_second{tier="ssd"} 1.5e+09',
        )
    )
