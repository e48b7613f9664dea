from dataclasses import replace

import pytest

from serverless_triton.loader.cache import ImageCache
from serverless_triton.loader.effects import RecordedEffects
from serverless_triton.loader.keeper import Keeper
from serverless_triton.loader.metrics import MIN_SAMPLE_BYTES, NEWEST_WEIGHT, BandwidthMeter
from tests.unit.loader.keeper_driver import FROM_SSD, MEGABYTES, attach, checkpoint, connect


def test_an_average_follows_the_newest_loads() -> None:
    meter = BandwidthMeter()
    meter.record("disk:1", "ssd", 10 * MEGABYTES, 1.0)
    meter.record("disk:1", "ssd", 20 * MEGABYTES, 1.0)

    assert meter.bytes_per_second() == {"ssd": (10 + NEWEST_WEIGHT * 10) * MEGABYTES}


def test_tiers_are_measured_apart() -> None:
    meter = BandwidthMeter()
    meter.record("disk:1", "ssd", 2 * MEGABYTES, 1.0)
    meter.record("disk:1", "page_cache", 8 * MEGABYTES, 1.0)

    assert meter.bytes_per_second() == {"page_cache": 8 * MEGABYTES, "ssd": 2 * MEGABYTES}


def test_devices_are_measured_apart() -> None:
    meter = BandwidthMeter()
    meter.record("disk:1", "ssd", 2 * MEGABYTES, 1.0)
    meter.record("disk:2", "ssd", 8 * MEGABYTES, 1.0)

    assert meter.devices == ["disk:1", "disk:2"]
    assert meter.bytes_per_second("disk:2") == {"ssd": 8 * MEGABYTES}
    assert meter.bytes_per_second("disk:3") == {}


def test_loads_too_small_to_tell_are_ignored() -> None:
    meter = BandwidthMeter()
    meter.record("disk:1", "ssd", MIN_SAMPLE_BYTES - 1, 1.0)
    meter.record("disk:1", "ssd", 10 * MEGABYTES, 0.0)

    assert meter.bytes_per_second() == {}


@pytest.mark.parametrize(("share", "known"), [(0.94, {}), (0.95, {"ssd": MEGABYTES / 2})])
def test_a_load_from_two_tiers_says_nothing_about_the_speed_of_either(share: float, known: dict[str, float]) -> None:
    effects = RecordedEffects()
    keeper = connect(Keeper(ImageCache(2 * MEGABYTES), effects))
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    keeper.load_finished(effects.started[-1], replace(FROM_SSD, tier_share=share), 2)

    assert keeper.snapshot().status.bandwidth_bytes_per_second == known
