"""What a daemon that is killed during a load leaves: memory that nobody may use for a while."""

import pytest

from serverless_triton.loader.cache import ImageCache
from serverless_triton.loader.device_state import NO_DEVICES
from serverless_triton.loader.effects import RecordedEffects
from serverless_triton.loader.errors import StoreCancelled
from serverless_triton.loader.keeper import Keeper
from serverless_triton.loader.replies import Attached, Failed
from serverless_triton.loader.state import DaemonState, StateEncoder, decode_state
from tests.unit.loader.keeper_driver import MEGABYTES, attach, checkpoint, connect, fail, finish, loaded

ARENA_BYTES = 4 * MEGABYTES


@pytest.fixture
def effects() -> RecordedEffects:
    return RecordedEffects()


@pytest.fixture
def keeper(effects: RecordedEffects) -> Keeper:
    return connect(Keeper(ImageCache(ARENA_BYTES), effects))


def successor(effects: RecordedEffects) -> tuple[Keeper, RecordedEffects]:
    """What takes over from a daemon that was killed now."""
    fresh = RecordedEffects()
    keeper = Keeper(ImageCache(ARENA_BYTES), fresh)
    state = DaemonState(store=effects.saved[-1], devices=NO_DEVICES)
    keeper.adopt(decode_state(StateEncoder().encode(state)).store, first_client=10)
    return connect(keeper), fresh


def test_where_a_load_writes_is_saved_before_it_begins() -> None:
    class Ordered(RecordedEffects):
        def start_load(self, image):  # type: ignore[no-untyped-def]
            assert self.saved[-1].in_flight == tuple(image.pieces)
            super().start_load(image)

    effects = Ordered()
    attach(connect(Keeper(ImageCache(ARENA_BYTES), effects)), 1, 1, checkpoint("/a"), now_s=0)

    assert len(effects.started) == 1


def test_what_was_loaded_is_in_flight_no_more(keeper: Keeper, effects: RecordedEffects) -> None:
    loaded(keeper, effects, "/a")
    assert effects.saved[-1].in_flight == ()


def test_what_failed_to_load_is_in_flight_no_more(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    fail(keeper, effects, StoreCancelled("no"), now_s=1)
    assert effects.saved[-1].in_flight == ()


def test_a_successor_writes_nothing_where_a_load_may_still_be_writing(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a", 2 * MEGABYTES), now_s=0)
    in_flight = set(effects.started[0].pieces)
    after, world = successor(effects)
    status = after.snapshot().status
    assert status.used_bytes == 0
    assert (status.arena.quarantined_bytes, status.arena.free_bytes) == (2 * MEGABYTES, 2 * MEGABYTES)

    attach(after, 1, 1, checkpoint("/b", 2 * MEGABYTES), now_s=1)
    assert not in_flight & set(world.started[0].pieces)
    finish(after, world, now_s=2)
    after.end_quarantine(now_s=60)
    status = after.snapshot().status
    assert (status.arena.quarantined_bytes, status.arena.free_bytes) == (0, 2 * MEGABYTES)
    assert world.saved[-1].in_flight == ()


def test_a_load_that_needs_that_memory_waits_for_it(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a", 3 * MEGABYTES), now_s=0)
    after, world = successor(effects)
    attach(after, 1, 1, checkpoint("/a", 3 * MEGABYTES), now_s=1)
    assert (world.started, world.replies) == ([], [])
    after.end_quarantine(now_s=60)
    finish(after, world, now_s=61)

    assert isinstance(world.to(1)[0], Attached)


def test_a_load_that_waits_for_that_memory_takes_what_a_release_gives(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/quarantined"), now_s=0)
    after, world = successor(effects)
    attach(after, 1, 1, checkpoint("/a", 3 * MEGABYTES), now_s=1)
    finish(after, world, now_s=2)
    attached = world.to(1)[0]
    assert isinstance(attached, Attached)
    attach(after, 2, 1, checkpoint("/b", 3 * MEGABYTES), now_s=3)
    assert len(world.started) == 1
    after.release(1, attached.image_id, now_s=4)

    assert [image.checkpoint.path for image in world.started] == ["/a", "/b"]


def test_a_load_that_waits_for_that_memory_takes_what_an_unpin_gives(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/quarantined"), now_s=0)
    after, world = successor(effects)
    after.pin(1, 1, checkpoint("/a", 3 * MEGABYTES), now_s=1)
    finish(after, world, now_s=2)
    attach(after, 2, 1, checkpoint("/b", 3 * MEGABYTES), now_s=3)
    assert len(world.started) == 1
    after.unpin(1, 2, "/a", now_s=4)

    assert [image.checkpoint.path for image in world.started] == ["/a", "/b"]


def test_what_does_not_fit_without_a_quarantine_is_refused_when_it_is_over(
    keeper: Keeper, effects: RecordedEffects
) -> None:
    attach(keeper, 1, 1, checkpoint("/held", 3 * MEGABYTES), now_s=0)
    finish(keeper, effects, now_s=1)
    attach(keeper, 2, 1, checkpoint("/a"), now_s=2)
    after, world = successor(effects)
    attach(after, 3, 1, checkpoint("/b", 2 * MEGABYTES), now_s=3)
    after.end_quarantine(now_s=60)

    reply = world.to(3)[0]
    assert isinstance(reply, Failed)
    assert reply.error == "StoreFull"


def test_a_successor_that_dies_too_leaves_the_quarantine_to_the_next(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    _, world = successor(effects)
    third, _ = successor(world)

    assert third.snapshot().status.arena.quarantined_bytes == MEGABYTES
