"""Loads by device: who overtakes whom, who is paused, who makes room. The keeper driven by hand."""

import pytest

from serverless_triton.loader.cache import ImageCache
from serverless_triton.loader.effects import RecordedEffects
from serverless_triton.loader.errors import StoreCancelled
from serverless_triton.loader.keeper import Keeper
from serverless_triton.loader.replies import Attached, Failed, Progress
from serverless_triton.loader.store_status import QueueStatus
from tests.unit.loader.keeper_driver import MEGABYTES, attach, checkpoint, connect, fail, finish


@pytest.fixture
def effects() -> RecordedEffects:
    return RecordedEffects()


@pytest.fixture
def keeper(effects: RecordedEffects) -> Keeper:
    return connect(Keeper(ImageCache(4 * MEGABYTES), effects))


def started(effects: RecordedEffects) -> list[str]:
    return [image.checkpoint.path for image in effects.started]


def queue(keeper: Keeper) -> QueueStatus:
    return keeper.snapshot().status.queues[0]


def test_devices_load_side_by_side(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a", device="disk:1"), now_s=0)
    attach(keeper, 2, 1, checkpoint("/b", device="disk:2"), now_s=0)
    attach(keeper, 3, 1, checkpoint("/c", device="disk:2"), now_s=0)

    assert started(effects) == ["/a", "/b"]
    finish(keeper, effects, now_s=1)
    assert started(effects) == ["/a", "/b", "/c"]


def test_who_is_waited_for_overtakes_prefetches(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    keeper.prefetch(99, 1, checkpoint("/b"), now_s=1)
    attach(keeper, 2, 1, checkpoint("/c"), now_s=2)
    assert effects.paused == []
    for _ in range(2):
        finish(keeper, effects, now_s=3)

    assert started(effects) == ["/a", "/c", "/b"]


def test_a_prefetch_that_runs_is_paused_for_who_is_waited_for(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.prefetch(99, 1, checkpoint("/a"), now_s=0)
    prefetch = effects.started[0]
    attach(keeper, 1, 1, checkpoint("/b"), now_s=10)
    assert (started(effects), effects.paused) == (["/a", "/b"], [prefetch])
    assert (queue(keeper).running, queue(keeper).paused_loads, queue(keeper).prefetches) == ("/b", 1, 1)
    finish(keeper, effects, now_s=12)
    assert effects.resumed == [prefetch]
    finish(keeper, effects, now_s=13, image=prefetch)

    # the pause is no slowness of the disk: ten seconds before it and one after, two of the other load
    assert keeper.snapshot().totals.seconds["ssd"] == 2 + 10 + 1


def test_a_prefetch_elsewhere_goes_on(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.prefetch(99, 1, checkpoint("/a", device="disk:2"), now_s=0)
    attach(keeper, 1, 1, checkpoint("/b"), now_s=1)

    assert effects.paused == []


def test_a_paused_prefetch_that_somebody_waits_for_waits_its_turn(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.prefetch(99, 1, checkpoint("/a"), now_s=0)
    attach(keeper, 1, 1, checkpoint("/b"), now_s=1)
    attach(keeper, 2, 1, checkpoint("/a"), now_s=2)
    attach(keeper, 3, 1, checkpoint("/c"), now_s=3)
    assert effects.resumed == []
    finish(keeper, effects, now_s=4)

    assert [image.checkpoint.path for image in effects.resumed] == ["/a"]
    assert started(effects) == ["/a", "/b"]


def test_a_load_whose_waiters_left_gives_way_if_it_was_prefetched(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.prefetch(99, 1, checkpoint("/a"), now_s=0)
    attach(keeper, 1, 1, checkpoint("/a"), now_s=1)
    attach(keeper, 2, 1, checkpoint("/b"), now_s=2)
    assert effects.paused == []
    keeper.cancel(1, 1, now_s=3)

    assert [image.checkpoint.path for image in effects.paused] == ["/a"]
    assert started(effects) == ["/a", "/b"]


def test_evicting_a_paused_prefetch_ends_it(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.prefetch(99, 1, checkpoint("/a"), now_s=0)
    prefetch = effects.started[0]
    attach(keeper, 1, 1, checkpoint("/b"), now_s=1)
    keeper.evict(2, 1, "/a", now_s=2)
    assert effects.cancelled == [prefetch]
    keeper.load_failed(prefetch, StoreCancelled("stopped"), now_s=3)
    finish(keeper, effects, now_s=4)

    assert effects.resumed == []
    assert [image.path for image in keeper.snapshot().status.images] == ["/b"]


def test_a_pause_that_came_too_late_is_no_matter(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.prefetch(99, 1, checkpoint("/a"), now_s=0)
    attach(keeper, 1, 1, checkpoint("/b"), now_s=1)
    finish(keeper, effects, now_s=2, image=effects.started[0])
    finish(keeper, effects, now_s=3)

    assert {image.state for image in keeper.snapshot().status.images} == {"ready"}
    assert effects.resumed == []


def test_a_prefetch_makes_room_for_who_is_waited_for(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.prefetch(99, 1, checkpoint("/a", 3 * MEGABYTES), now_s=0)
    attach(keeper, 1, 1, checkpoint("/b", 3 * MEGABYTES), now_s=1)
    assert (effects.cancelled, effects.to(1)) == (effects.started, [])
    fail(keeper, effects, StoreCancelled("stopped"), now_s=2)
    assert started(effects) == ["/a", "/b"]
    finish(keeper, effects, now_s=3)

    assert isinstance(effects.to(1)[0], Attached)


def test_no_prefetch_gives_way_to_what_would_not_fit_without_it_either(
    keeper: Keeper, effects: RecordedEffects
) -> None:
    attach(keeper, 1, 1, checkpoint("/held", 2 * MEGABYTES), now_s=0)
    finish(keeper, effects, now_s=1)
    keeper.prefetch(99, 1, checkpoint("/a"), now_s=2)
    attach(keeper, 2, 1, checkpoint("/b", 3 * MEGABYTES, device="disk:2"), now_s=3)

    [reply] = effects.to(2)
    assert isinstance(reply, Failed)
    assert reply.error == "StoreFull"
    assert effects.cancelled == []
    assert [image.path for image in keeper.snapshot().status.images] == ["/held", "/a"]


def test_the_fewest_and_newest_prefetches_give_way_together(keeper: Keeper, effects: RecordedEffects) -> None:
    for disk in (1, 2, 3, 4):
        keeper.prefetch(99, disk, checkpoint(f"/{disk}", device=f"disk:{disk}"), now_s=0)
    attach(keeper, 1, 1, checkpoint("/b", 2 * MEGABYTES, device="disk:5"), now_s=1)
    assert [image.checkpoint.path for image in effects.cancelled] == ["/4", "/3"]
    for image in list(effects.cancelled):
        keeper.load_failed(image, StoreCancelled("stopped"), now_s=2)

    assert started(effects) == ["/1", "/2", "/3", "/4", "/b"]
    assert len(effects.cancelled) == 2


def test_a_prefetch_waits_for_the_room_of_one_that_is_stopping(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.prefetch(99, 1, checkpoint("/a", 3 * MEGABYTES), now_s=0)
    keeper.evict(2, 1, "/a", now_s=1)
    keeper.prefetch(99, 2, checkpoint("/b", 3 * MEGABYTES, device="disk:2"), now_s=2)
    fail(keeper, effects, StoreCancelled("stopped"), now_s=3)

    assert started(effects) == ["/a", "/b"]


def test_a_prefetch_that_finds_no_room_disturbs_nobody(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.prefetch(99, 1, checkpoint("/a", 3 * MEGABYTES), now_s=0)
    keeper.prefetch(99, 2, checkpoint("/b", 3 * MEGABYTES, device="disk:2"), now_s=0)

    assert effects.cancelled == []
    assert [image.path for image in keeper.snapshot().status.images] == ["/a"]


def test_a_pinned_prefetch_makes_no_room(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.pin(99, 1, checkpoint("/a", 3 * MEGABYTES), now_s=0)
    attach(keeper, 1, 1, checkpoint("/b", 3 * MEGABYTES), now_s=1)

    assert effects.cancelled == []
    reply = effects.to(1)[0]
    assert isinstance(reply, Failed)
    assert reply.error == "StoreFull"


def test_progress_is_told_to_those_who_asked(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 5, checkpoint("/a"), now_s=0, progress=True)
    attach(keeper, 2, 6, checkpoint("/a"), now_s=0)
    effects.progress = 9
    assert keeper.tell_progress()
    assert effects.replies == [(1, Progress(id=5, bytes_done=9, bytes_total=MEGABYTES, bytes_ahead=0))]
    finish(keeper, effects, now_s=1)

    assert not keeper.tell_progress()


def test_who_waits_behind_others_is_told_what_they_have_left(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 5, checkpoint("/a"), now_s=0)
    attach(keeper, 2, 6, checkpoint("/b"), now_s=1, progress=True)
    effects.progress = 9
    keeper.tell_progress()
    finish(keeper, effects, now_s=2)
    keeper.tell_progress()

    assert [message for message in effects.to(2) if isinstance(message, Progress)] == [
        Progress(id=6, bytes_done=0, bytes_total=MEGABYTES, bytes_ahead=MEGABYTES - 9),
        Progress(id=6, bytes_done=9, bytes_total=MEGABYTES, bytes_ahead=0),
    ]


def test_a_device_keeps_its_bandwidth(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a", device="disk:1"), now_s=0)
    finish(keeper, effects, now_s=1)
    attach(keeper, 1, 1, checkpoint("/b", device="disk:2"), now_s=1)
    finish(keeper, effects, now_s=5)

    speeds = {q.device: q.bandwidth_bytes_per_second["ssd"] for q in keeper.snapshot().status.queues}
    assert speeds == {"disk:1": MEGABYTES, "disk:2": MEGABYTES / 4}
