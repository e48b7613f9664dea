from serverless_triton.loader.estimator import ASSUMED_BYTES_PER_SECOND, Bandwidths, Throttles, estimate_read
from serverless_triton.loader.receipts import Estimate

MEASURED = Bandwidths(measured={"ssd": 100.0, "page_cache": 400.0}, throttle_bytes_per_second=0)


def test_an_estimate_is_the_queue_at_the_disk_s_speed_and_the_read_at_its_tier_s() -> None:
    answer = estimate_read(tier="page_cache", unread_bytes=800, bytes_ahead=50, bandwidths=MEASURED)

    assert answer == Estimate(tier="page_cache", queue_s=0.5, read_s=2.0, copy_s=0.0, total_s=2.5, is_measured=True)


def test_a_tier_that_was_never_read_is_assumed_and_says_so() -> None:
    nothing = Bandwidths(measured={}, throttle_bytes_per_second=0)
    answer = estimate_read(
        tier="ssd", unread_bytes=int(ASSUMED_BYTES_PER_SECOND["ssd"]), bytes_ahead=0, bandwidths=nothing
    )

    assert (answer.read_s, answer.is_measured) == (1.0, False)


def test_an_assumed_speed_of_those_ahead_makes_the_whole_an_assumption() -> None:
    cached_only = Bandwidths(measured={"page_cache": 400.0}, throttle_bytes_per_second=0)

    for bytes_ahead, is_measured in ((0, True), (1, False)):
        answer = estimate_read(tier="page_cache", unread_bytes=1, bytes_ahead=bytes_ahead, bandwidths=cached_only)
        assert answer.is_measured is is_measured


def test_a_throttle_is_known_and_caps_what_was_measured() -> None:
    for measured in ({}, {"ssd": 100.0}):
        throttled = Bandwidths(measured=measured, throttle_bytes_per_second=50)
        answer = estimate_read(tier="ssd", unread_bytes=100, bytes_ahead=0, bandwidths=throttled)
        assert (answer.read_s, answer.is_measured) == (2.0, True)


def test_each_tier_has_the_limit_of_its_device() -> None:
    throttles = Throttles(ssd_bytes_per_second=3, remote_bytes_per_second=5)
    assert [throttles.of(tier) for tier in ("remote", "ssd", "page_cache")] == [5, 3, 3]
