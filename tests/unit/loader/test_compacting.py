"""Images that are moved so that another finds contiguous room, and who meets them on the way. Driven by hand."""

import pytest

from serverless_triton.loader.cache import Image, ImageCache
from serverless_triton.loader.effects import RecordedEffects
from serverless_triton.loader.keeper import Keeper
from serverless_triton.loader.replies import Attached, Evicted, Failed
from tests.unit.loader.keeper_driver import MEGABYTES, attach, checkpoint, connect, finish, loaded

EIGHTY = 80 * MEGABYTES


@pytest.fixture
def effects() -> RecordedEffects:
    return RecordedEffects()


@pytest.fixture
def keeper(effects: RecordedEffects) -> Keeper:
    """Room for five images of eighty megabytes."""
    return connect(Keeper(ImageCache(5 * EIGHTY), effects))


@pytest.fixture
def moving(keeper: Keeper, effects: RecordedEffects) -> Image:
    """An image on its way to another place, for the sake of /wide, which client 1 waits for."""
    images = [loaded(keeper, effects, checkpoint(f"/{i}", EIGHTY)) for i in range(5)]
    for path in ("/0", "/2"):
        keeper.evict(2, 1, path, now_s=1)
    effects.replies.clear()
    attach(keeper, 1, 1, checkpoint("/wide", 2 * EIGHTY), now_s=2)
    return images[1]


def test_the_load_begins_when_the_moves_are_done(keeper: Keeper, effects: RecordedEffects, moving: Image) -> None:
    assert [len(moves) for moves in effects.moves] == [1]
    assert effects.started[-1].checkpoint.path == "/4"
    keeper.moved(now_s=3)
    assert effects.started[-1].checkpoint.path == "/wide"
    finish(keeper, effects, now_s=4)

    reply = effects.to(1)[0]
    assert isinstance(reply, Attached)
    assert (reply.receipt.scattered, reply.receipt.queue_s, reply.receipt.read_s) == (False, 1, 1)
    assert keeper.snapshot().status.arena.fragmentation == 0


def test_nobody_is_told_a_place_that_still_changes(keeper: Keeper, effects: RecordedEffects, moving: Image) -> None:
    attach(keeper, 2, 7, checkpoint("/1", EIGHTY), now_s=2)
    attach(keeper, 3, 8, checkpoint("/3", EIGHTY), now_s=2)
    assert [client for client, _ in effects.replies] == [3]
    keeper.moved(now_s=5)

    reply = effects.to(2)[0]
    assert isinstance(reply, Attached)
    assert reply.extents[0].pieces[0].offset == effects.moves[0][0].target
    assert (reply.receipt.tier, reply.receipt.queue_s) == ("dram", 3)


def test_what_is_moving_is_not_left_to_a_successor(keeper: Keeper, effects: RecordedEffects, moving: Image) -> None:
    assert moving.id not in {record.id for record in effects.saved[-1].images}
    keeper.moved(now_s=3)

    record = next(record for record in effects.saved[-1].images if record.id == moving.id)
    assert record.files == moving.files


def test_waiting_for_a_moving_image_ends_with_a_cancellation_or_the_client(
    keeper: Keeper, effects: RecordedEffects, moving: Image
) -> None:
    attach(keeper, 2, 7, checkpoint("/1", EIGHTY), now_s=2)
    attach(keeper, 3, 8, checkpoint("/1", EIGHTY), now_s=2)
    keeper.cancel(2, 7, now_s=3)
    keeper.disconnect(3, now_s=3)
    keeper.moved(now_s=4)

    reply = effects.to(2)[0]
    assert isinstance(reply, Failed)
    assert reply.error == "StoreCancelled"
    assert effects.to(3) == []
    assert not moving.leases


def test_a_moving_image_is_evicted_once_it_stands(keeper: Keeper, effects: RecordedEffects, moving: Image) -> None:
    keeper.evict(2, 9, "/1", now_s=3)
    assert effects.to(2) == []
    assert "evicting" in {image.state for image in keeper.snapshot().status.images}
    keeper.moved(now_s=4)

    assert effects.to(2) == [Evicted(id=9, images=1)]
    assert "/1" not in {image.path for image in keeper.snapshot().status.images}


def test_an_image_on_its_way_out_is_loaded_anew(keeper: Keeper, effects: RecordedEffects, moving: Image) -> None:
    keeper.evict(2, 9, "/1", now_s=3)
    attach(keeper, 2, 10, checkpoint("/1", EIGHTY), now_s=3)
    keeper.moved(now_s=4)
    for _ in range(2):
        finish(keeper, effects, now_s=5)

    reply = effects.to(2)[-1]
    assert isinstance(reply, Attached)
    assert reply.image_id != moving.id


def test_other_devices_wait_for_the_moves_before_they_take_room(
    keeper: Keeper, effects: RecordedEffects, moving: Image
) -> None:
    before = len(effects.started)
    attach(keeper, 2, 1, checkpoint("/other", MEGABYTES, device="disk:2"), now_s=3)
    assert len(effects.started) == before
    keeper.moved(now_s=4)

    assert {image.checkpoint.path for image in effects.started[before:]} == {"/wide", "/other"}


def test_a_load_that_nobody_wants_after_the_moves_does_not_begin(
    keeper: Keeper, effects: RecordedEffects, moving: Image
) -> None:
    before = len(effects.started)
    keeper.disconnect(1, now_s=3)
    keeper.moved(now_s=4)

    assert (len(effects.started), effects.cancelled) == (before, [])
    assert keeper.snapshot().status.used_bytes == 3 * EIGHTY


def test_a_leased_image_is_not_moved_and_the_new_one_is_scattered(keeper: Keeper, effects: RecordedEffects) -> None:
    for i in range(5):
        loaded(keeper, effects, checkpoint(f"/{i}", EIGHTY))
    for path in ("/1", "/3"):
        attach(keeper, 2, 1, checkpoint(path, EIGHTY), now_s=1)
    for path in ("/0", "/2"):
        keeper.evict(2, 1, path, now_s=1)
    attach(keeper, 1, 1, checkpoint("/wide", EIGHTY + 70 * MEGABYTES), now_s=2)
    assert effects.moves == []
    finish(keeper, effects, now_s=3)

    reply = effects.to(1)[0]
    assert isinstance(reply, Attached)
    assert reply.receipt.scattered
    assert [piece.length // MEGABYTES for piece in reply.extents[0].pieces] == [80, 70]
