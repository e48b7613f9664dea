"""The store's decisions, driven by hand: effects are recorded, time is an argument."""

import pytest

from serverless_triton.loader.cache import ImageCache
from serverless_triton.loader.effects import RecordedEffects
from serverless_triton.loader.errors import CheckpointTruncated, ImageLeased, StoreCancelled, StoreFull
from serverless_triton.loader.keeper import Keeper
from serverless_triton.loader.layout import ALIGNMENT_BYTES
from serverless_triton.loader.replies import Attached, Evicted, Failed, Prefetching, Status
from serverless_triton.loader.store_status import StoreStatus
from tests.unit.loader.keeper_driver import (
    MEGABYTES,
    attach,
    checkpoint,
    connect,
    fail,
    finish,
    loaded,
)


@pytest.fixture
def effects() -> RecordedEffects:
    return RecordedEffects()


@pytest.fixture
def keeper(effects: RecordedEffects) -> Keeper:
    return connect(Keeper(ImageCache(2 * MEGABYTES), effects))


def status(keeper: Keeper, effects: RecordedEffects) -> StoreStatus:
    keeper.status(client=1000, request_id=1)
    reply = effects.replies.pop()[1]
    assert isinstance(reply, Status)
    return reply.status


def paths(keeper: Keeper, effects: RecordedEffects) -> list[str]:
    return [image.path for image in status(keeper, effects).images]


def test_two_clients_share_one_load(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 10, checkpoint("/a"), now_s=0)
    attach(keeper, 2, 20, checkpoint("/a"), now_s=3)
    assert len(effects.started) == 1
    finish(keeper, effects, now_s=5)

    first, second = effects.to(1)[0], effects.to(2)[0]
    assert isinstance(first, Attached)
    assert isinstance(second, Attached)
    assert (first.id, second.id) == (10, 20)
    assert (first.receipt.tier, first.receipt.queue_s, first.receipt.read_s) == ("ssd", 0, 5)
    assert (second.receipt.queue_s, second.receipt.read_s) == (0, 2)


def test_a_ready_image_is_attached_at_once_from_dram(keeper: Keeper, effects: RecordedEffects) -> None:
    loaded(keeper, effects, "/a")
    attach(keeper, 1, 1, checkpoint("/a"), now_s=9)

    reply = effects.to(1)[0]
    assert isinstance(reply, Attached)
    assert (reply.receipt.tier, reply.receipt.read_s, reply.receipt.verified) == ("dram", 0, True)
    assert len(effects.started) == 1


def test_loads_run_one_at_a_time_in_order(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    attach(keeper, 2, 1, checkpoint("/b"), now_s=1)
    assert [image.checkpoint.path for image in effects.started] == ["/a"]
    assert status(keeper, effects).queue_depth == 2
    finish(keeper, effects, now_s=4)
    finish(keeper, effects, now_s=6)

    reply = effects.to(2)[0]
    assert isinstance(reply, Attached)
    assert (reply.receipt.queue_s, reply.receipt.read_s) == (3, 2)


def test_a_failure_reaches_every_waiter_and_leaves_nothing(keeper: Keeper, effects: RecordedEffects) -> None:
    for client in (1, 2):
        attach(keeper, client, 1, checkpoint("/a"), now_s=0)
    fail(keeper, effects, CheckpointTruncated("/a/m is cut off"), now_s=1)

    failed = Failed(id=1, error="CheckpointTruncated", message="/a/m is cut off")
    assert effects.replies == [(1, failed), (2, failed)]
    assert status(keeper, effects).images == ()
    attach(keeper, 1, 2, checkpoint("/a"), now_s=2)
    assert len(effects.started) == 2


def test_room_is_made_before_the_load_starts(keeper: Keeper, effects: RecordedEffects) -> None:
    loaded(keeper, effects, "/a")
    loaded(keeper, effects, "/b")
    attach(keeper, 1, 1, checkpoint("/c"), now_s=5)

    assert paths(keeper, effects) == ["/b", "/c"]
    assert [image.checkpoint.path for image in effects.started] == ["/a", "/b", "/c"]


def test_leased_images_make_the_store_full(keeper: Keeper, effects: RecordedEffects) -> None:
    for client, path in ((1, "/a"), (2, "/b")):
        attach(keeper, client, 1, checkpoint(path), now_s=0)
        finish(keeper, effects, now_s=0)
    attach(keeper, 3, 1, checkpoint("/c"), now_s=1)

    reply = effects.to(3)[0]
    assert isinstance(reply, Failed)
    assert reply.error == "StoreFull"
    keeper.disconnect(1, now_s=2)
    keeper.process_ended(1, now_s=2)
    attach(keeper, 3, 2, checkpoint("/c"), now_s=3)
    assert paths(keeper, effects) == ["/b", "/c"]


def test_a_checkpoint_that_can_never_fit_is_refused_at_once(keeper: Keeper, effects: RecordedEffects) -> None:
    with pytest.raises(StoreFull):
        attach(keeper, 1, 1, checkpoint("/a", 3 * MEGABYTES), now_s=0)
    assert status(keeper, effects).images == ()


def test_eviction_is_refused_under_a_lease_and_under_a_waiter(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    with pytest.raises(ImageLeased, match="/a"):
        keeper.evict(2, 1, "/a", now_s=0)
    finish(keeper, effects, now_s=1)
    with pytest.raises(ImageLeased, match="/a"):
        keeper.evict(2, 1, "/a", now_s=1)
    assert paths(keeper, effects) == ["/a"]


def test_eviction_gives_the_memory_back_at_once(keeper: Keeper, effects: RecordedEffects) -> None:
    loaded(keeper, effects, "/a")
    keeper.evict(2, 1, "/a", now_s=2)

    assert effects.to(2) == [Evicted(id=1, images=1)]
    assert status(keeper, effects).used_bytes == 0


def test_an_eviction_counts_images_on_devices_and_is_answered_once_they_are_gone_too(
    keeper: Keeper, effects: RecordedEffects
) -> None:
    loaded(keeper, effects, "/a")
    keeper.evict(2, 1, "/a", now_s=2, on_devices=[7, 8])
    keeper.freed_on_device(7)
    assert effects.to(2) == []

    keeper.freed_on_device(8)

    assert effects.to(2) == [Evicted(id=1, images=3)]


def test_an_image_on_a_device_is_not_taken_for_one_in_memory(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.prefetch(1, 1, checkpoint("/a"), now_s=0)
    keeper.evict(2, 1, "/a", now_s=1)

    keeper.freed_on_device(effects.started[0].id)
    assert effects.to(2) == []
    fail(keeper, effects, StoreCancelled("stopped"), now_s=2)

    assert effects.to(2) == [Evicted(id=1, images=1)]


def test_evicting_what_is_not_there_drops_nothing(keeper: Keeper, effects: RecordedEffects) -> None:
    keeper.evict(2, 1, "/a", now_s=0)

    assert effects.to(2) == [Evicted(id=1, images=0)]


def test_a_client_that_dies_while_it_waits_ends_a_load_nobody_else_wants(
    keeper: Keeper, effects: RecordedEffects
) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    attach(keeper, 2, 1, checkpoint("/b"), now_s=0)
    keeper.disconnect(2, now_s=1)
    assert [image.path for image in status(keeper, effects).images] == ["/a"]
    keeper.disconnect(1, now_s=1)
    assert effects.cancelled == effects.started
    fail(keeper, effects, StoreCancelled("stopped"), now_s=2)

    assert status(keeper, effects).images == ()
    assert effects.replies == []


def test_a_client_that_joins_a_cancelled_load_gets_a_new_one(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    keeper.disconnect(1, now_s=1)
    attach(keeper, 2, 1, checkpoint("/a"), now_s=2)
    fail(keeper, effects, StoreCancelled("stopped"), now_s=3)
    assert len(effects.started) == 2
    finish(keeper, effects, now_s=4)

    reply = effects.to(2)[0]
    assert isinstance(reply, Attached)
    assert (reply.receipt.queue_s, reply.receipt.read_s) == (1, 1)


def test_a_load_goes_on_while_another_client_waits(keeper: Keeper, effects: RecordedEffects) -> None:
    for client in (1, 2):
        attach(keeper, client, 5, checkpoint("/a"), now_s=0)
    keeper.cancel(1, 5, now_s=1)

    assert effects.cancelled == []
    assert isinstance(effects.to(1)[0], Failed)
    finish(keeper, effects, now_s=2)
    assert isinstance(effects.to(2)[0], Attached)


def test_a_cancellation_that_comes_too_late_changes_nothing(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 5, checkpoint("/a"), now_s=0)
    finish(keeper, effects, now_s=1)
    keeper.cancel(1, 5, now_s=2)

    assert len(effects.replies) == 1
    assert status(keeper, effects).images[0].leases == 1


def test_a_prefetch_needs_nobody_to_wait(keeper: Keeper, effects: RecordedEffects) -> None:
    effects.progress = 7
    keeper.prefetch(1, 1, checkpoint("/a"), now_s=0)
    keeper.disconnect(1, now_s=1)
    assert effects.cancelled == []
    reply = effects.to(1)[0]
    assert isinstance(reply, Prefetching)
    assert (reply.image.state, reply.image.read_bytes) == ("loading", 7)
    finish(keeper, effects, now_s=2)

    assert status(keeper, effects).images[0].state == "ready"


def test_evicting_a_prefetch_stops_it_and_is_answered_once_it_has_stopped(
    keeper: Keeper, effects: RecordedEffects
) -> None:
    keeper.prefetch(1, 1, checkpoint("/a"), now_s=0)
    keeper.prefetch(1, 2, checkpoint("/b"), now_s=0)
    for request_id, path in ((1, "/a"), (2, "/b")):
        keeper.evict(2, request_id, path, now_s=1)
    assert effects.cancelled == effects.started
    assert effects.to(2) == [Evicted(id=2, images=1)]
    fail(keeper, effects, StoreCancelled("stopped"), now_s=2)

    assert status(keeper, effects).images == ()


def test_a_changed_checkpoint_is_loaded_anew_and_the_old_version_goes(keeper: Keeper, effects: RecordedEffects) -> None:
    loaded(keeper, effects, "/a")
    attach(keeper, 1, 1, checkpoint("/a", mtime_ns=5), now_s=2)

    assert len(effects.started) == 2
    assert len(paths(keeper, effects)) == 1


def test_an_old_version_in_use_stays(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    finish(keeper, effects, now_s=1)
    attach(keeper, 2, 1, checkpoint("/a", mtime_ns=5), now_s=2)

    assert paths(keeper, effects) == ["/a", "/a"]


def test_a_released_image_stays_until_its_room_is_needed(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    finish(keeper, effects, now_s=1)
    reply = effects.to(1)[0]
    assert isinstance(reply, Attached)
    keeper.release(1, reply.image_id, now_s=9)

    assert paths(keeper, effects) == ["/a"]
    assert status(keeper, effects).leased_bytes == 0


def test_status_tells_bandwidth_by_tier(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    finish(keeper, effects, now_s=2)

    assert status(keeper, effects).bandwidth_bytes_per_second == {"ssd": MEGABYTES / 2}


def test_shutting_down_tells_everybody_who_waits(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    attach(keeper, 2, 1, checkpoint("/b"), now_s=0)
    keeper.shut_down()

    assert {(client, reply.error) for client, reply in effects.replies if isinstance(reply, Failed)} == {
        (1, "StoreUnavailable"),
        (2, "StoreUnavailable"),
    }
    assert effects.cancelled == effects.started


def test_a_store_without_room_for_padding_counts_whole_pages(effects: RecordedEffects) -> None:
    keeper = connect(Keeper(ImageCache(ALIGNMENT_BYTES), effects))
    attach(keeper, 1, 1, checkpoint("/a", 1), now_s=0)

    assert status(keeper, effects).used_bytes == ALIGNMENT_BYTES
