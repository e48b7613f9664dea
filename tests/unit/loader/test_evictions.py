"""Evictions of what is being loaded: each is answered, whatever becomes of the load. The keeper driven by hand."""

import pytest

from serverless_triton.loader.cache import ImageCache
from serverless_triton.loader.effects import RecordedEffects
from serverless_triton.loader.errors import StoreCancelled
from serverless_triton.loader.keeper import Keeper
from serverless_triton.loader.replies import Attached, Evicted, Failed
from tests.unit.loader.keeper_driver import MEGABYTES, attach, checkpoint, connect, fail, finish, loaded


@pytest.fixture
def effects() -> RecordedEffects:
    return RecordedEffects()


@pytest.fixture
def keeper(effects: RecordedEffects) -> Keeper:
    return connect(Keeper(ImageCache(4 * MEGABYTES), effects))


def evicted_while_it_loads(keeper: Keeper) -> None:
    """Client 2 waits for the eviction of a prefetch that has begun."""
    keeper.prefetch(99, 1, checkpoint("/a"), now_s=0)
    keeper.evict(2, 7, "/a", now_s=1)


def test_a_prefetch_that_ends_before_it_hears_of_its_eviction_goes_all_the_same(
    keeper: Keeper, effects: RecordedEffects
) -> None:
    evicted_while_it_loads(keeper)
    finish(keeper, effects, now_s=2)

    assert effects.to(2) == [Evicted(id=7, images=1)]
    assert keeper.snapshot().status.images == ()
    assert effects.saved[-1].images == ()


def test_an_eviction_does_not_wait_for_a_load_that_starts_over(keeper: Keeper, effects: RecordedEffects) -> None:
    evicted_while_it_loads(keeper)
    attach(keeper, 1, 1, checkpoint("/a"), now_s=2)
    fail(keeper, effects, StoreCancelled("stopped"), now_s=3)
    assert effects.to(2) == [Evicted(id=7, images=1)]
    finish(keeper, effects, now_s=4)

    assert isinstance(effects.to(1)[0], Attached)


def test_an_eviction_does_not_wait_for_who_attached_to_what_it_came_too_late_for(
    keeper: Keeper, effects: RecordedEffects
) -> None:
    evicted_while_it_loads(keeper)
    attach(keeper, 1, 1, checkpoint("/a"), now_s=2)
    finish(keeper, effects, now_s=3)

    assert effects.to(2) == [Evicted(id=7, images=1)]
    assert isinstance(effects.to(1)[0], Attached)


def test_who_left_again_does_not_keep_an_evicted_image(keeper: Keeper, effects: RecordedEffects) -> None:
    evicted_while_it_loads(keeper)
    attach(keeper, 1, 1, checkpoint("/a"), now_s=2)
    keeper.cancel(1, 1, now_s=3)
    finish(keeper, effects, now_s=4)

    assert effects.to(2) == [Evicted(id=7, images=1)]
    assert keeper.snapshot().status.images == ()


def test_a_load_that_ends_after_its_waiter_left_stays_for_the_next(keeper: Keeper, effects: RecordedEffects) -> None:
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    keeper.cancel(1, 1, now_s=1)
    finish(keeper, effects, now_s=2)

    assert [image.state for image in keeper.snapshot().status.images] == ["ready"]


def test_an_eviction_that_is_cancelled_is_answered_so_and_goes_on(keeper: Keeper, effects: RecordedEffects) -> None:
    evicted_while_it_loads(keeper)
    keeper.cancel(2, 7, now_s=2)
    [reply] = effects.to(2)
    assert isinstance(reply, Failed)
    assert (reply.id, reply.error) == (7, "StoreCancelled")
    fail(keeper, effects, StoreCancelled("stopped"), now_s=3)

    assert effects.to(2) == [reply]
    assert keeper.snapshot().status.images == ()


def test_cancelling_one_eviction_leaves_the_others_waiting(keeper: Keeper, effects: RecordedEffects) -> None:
    image = loaded(keeper, effects, "/a")
    keeper.evict(2, 7, "/a", now_s=1, on_devices=[image.id + 1])
    keeper.evict(3, 7, "/a", now_s=1, on_devices=[image.id + 1])
    keeper.cancel(2, 7, now_s=2)
    keeper.freed_on_device(image.id + 1)

    assert effects.to(3) == [Evicted(id=7, images=1)]
    assert len(effects.to(2)) == 1


def test_a_client_that_is_gone_is_told_of_no_eviction(keeper: Keeper, effects: RecordedEffects) -> None:
    evicted_while_it_loads(keeper)
    keeper.disconnect(2, now_s=2)
    fail(keeper, effects, StoreCancelled("stopped"), now_s=3)

    assert effects.to(2) == []
