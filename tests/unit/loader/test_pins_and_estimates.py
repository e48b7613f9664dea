"""Pins, estimates and totals: the keeper driven by hand, as in test_keeper.py."""

import pytest

from serverless_triton.loader.cache import ImageCache
from serverless_triton.loader.checkpoint import Checkpoint
from serverless_triton.loader.effects import RecordedEffects
from serverless_triton.loader.errors import CheckpointCorrupted, ImagePinned, StoreCancelled, StoreFull
from serverless_triton.loader.keeper import Keeper
from serverless_triton.loader.receipts import Estimate
from serverless_triton.loader.replies import Estimated, Evicted, Failed, Pinned, Unpinned
from tests.unit.loader.keeper_driver import MEGABYTES, attach, checkpoint, connect, fail, finish


@pytest.fixture
def effects() -> RecordedEffects:
    return RecordedEffects()


@pytest.fixture
def keeper(effects: RecordedEffects) -> Keeper:
    return connect(Keeper(ImageCache(2 * MEGABYTES), effects))


def pinned(keeper: Keeper, effects: RecordedEffects, path: str) -> None:
    """`path` is in the store, pinned."""
    keeper.pin(99, 1, checkpoint(path), now_s=0)
    finish(keeper, effects, now_s=1)


def estimate(keeper: Keeper, effects: RecordedEffects, asked: Checkpoint) -> Estimate:
    keeper.estimate(1, 1, asked, "ssd")
    reply = effects.replies.pop()[1]
    assert isinstance(reply, Estimated)
    return reply.estimate


def test_a_pinned_image_outlives_its_client_and_makes_no_room(keeper: Keeper, effects: RecordedEffects) -> None:
    pinned(keeper, effects, "/a")
    assert isinstance(effects.replies[0][1], Pinned)
    keeper.disconnect(99, now_s=1)
    attach(keeper, 2, 1, checkpoint("/b", 2 * MEGABYTES), now_s=2)

    reply = effects.replies[-1][1]
    assert isinstance(reply, Failed)
    assert "leased or pinned" in reply.message
    assert keeper.snapshot().status.images[0].pinned


def test_a_pinned_image_is_not_evicted_until_it_is_unpinned(keeper: Keeper, effects: RecordedEffects) -> None:
    pinned(keeper, effects, "/a")
    with pytest.raises(ImagePinned, match="/a is pinned; unpin it"):
        keeper.evict(2, 1, "/a", now_s=2)
    keeper.unpin(2, 2, "/a", now_s=9)
    keeper.unpin(2, 3, "/a", now_s=9)
    keeper.evict(2, 4, "/a", now_s=2)

    assert effects.to(2) == [Unpinned(id=2, images=1), Unpinned(id=3, images=0), Evicted(id=4, images=1)]


def test_a_pin_while_loading_keeps_the_load_going(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    keeper.pin(2, 1, checkpoint("/a"), now_s=0)
    keeper.disconnect(1, now_s=1)
    keeper.disconnect(2, now_s=1)

    assert effects.cancelled == []
    with pytest.raises(ImagePinned):
        keeper.evict(3, 1, "/a", now_s=1)


def test_a_pin_of_a_load_that_was_just_cancelled_starts_it_again(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    keeper.disconnect(1, now_s=1)
    keeper.pin(2, 1, checkpoint("/a"), now_s=2)
    fail(keeper, effects, StoreCancelled("stopped"), now_s=3)

    assert len(effects.started) == 2
    assert keeper.snapshot().status.images[0].pinned


def test_a_pin_holds_the_version_it_was_given(keeper: Keeper, effects: RecordedEffects) -> None:
    pinned(keeper, effects, "/a")
    attach(keeper, 2, 1, checkpoint("/a", mtime_ns=5), now_s=2)
    finish(keeper, effects, now_s=3)

    assert [image.pinned for image in keeper.snapshot().status.images] == [True, False]


def test_what_is_in_memory_takes_no_time(keeper: Keeper, effects: RecordedEffects) -> None:
    pinned(keeper, effects, "/a")

    assert estimate(keeper, effects, checkpoint("/a")).tier == "dram"
    assert estimate(keeper, effects, checkpoint("/a")).total_s == 0


def test_an_estimate_counts_what_is_left_of_the_loads_ahead(keeper: Keeper, effects: RecordedEffects) -> None:
    pinned(keeper, effects, "/a")  # one megabyte a second
    keeper.unpin(1, 1, "/a", now_s=9)
    attach(keeper, 1, 1, checkpoint("/b"), now_s=2)
    attach(keeper, 2, 1, checkpoint("/c"), now_s=2)
    effects.progress = MEGABYTES // 4

    running = estimate(keeper, effects, checkpoint("/b"))
    queued = estimate(keeper, effects, checkpoint("/c"))
    absent = estimate(keeper, effects, checkpoint("/d", MEGABYTES // 2))
    elsewhere = estimate(keeper, effects, checkpoint("/d", MEGABYTES // 2, device="disk:2"))
    assert (running.queue_s, running.read_s, running.is_measured) == (0, 0.75, True)
    assert (queued.queue_s, queued.read_s) == (0.75, 1)
    assert (absent.queue_s, absent.read_s, absent.total_s) == (1.75, 0.5, 2.25)
    assert (elsewhere.queue_s, elsewhere.is_measured) == (0, False)
    assert len(effects.started) == 2


def test_prefetches_are_not_ahead_of_an_attach(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.prefetch(1, 1, checkpoint("/a"), now_s=0)
    keeper.prefetch(1, 2, checkpoint("/b"), now_s=0)

    for asked in ("/a", "/b", "/c"):
        assert estimate(keeper, effects, checkpoint(asked, MEGABYTES // 2 if asked == "/c" else MEGABYTES)).queue_s == 0


def test_an_estimate_of_what_would_not_fit_is_refused(keeper: Keeper, effects: RecordedEffects) -> None:
    pinned(keeper, effects, "/a")
    with pytest.raises(StoreFull, match="/b"):
        estimate(keeper, effects, checkpoint("/b", 2 * MEGABYTES))
    with pytest.raises(StoreFull, match="in all"):
        estimate(keeper, effects, checkpoint("/b", 3 * MEGABYTES))


def test_totals_count_loads_by_tier_and_outcome(keeper: Keeper, effects: RecordedEffects) -> None:
    pinned(keeper, effects, "/a")
    attach(keeper, 1, 1, checkpoint("/a"), now_s=2)
    for error in (CheckpointCorrupted("broken"), StoreFull("no memory"), StoreCancelled("stopped")):
        attach(keeper, 1, 1, checkpoint("/b"), now_s=2)
        fail(keeper, effects, error, now_s=3)

    totals = keeper.snapshot().totals
    assert totals.loads == {
        ("ssd", "loaded"): 1,
        ("dram", "loaded"): 1,
        ("none", "failed"): 2,
        ("none", "cancelled"): 1,
    }
    assert (totals.bytes["ssd"], totals.seconds["ssd"], totals.verification_failures) == (MEGABYTES, 1, 1)


def test_a_snapshot_stays_as_it_was_taken(keeper: Keeper, effects: RecordedEffects) -> None:
    before = keeper.snapshot()
    pinned(keeper, effects, "/a")

    assert not before.totals.loads
