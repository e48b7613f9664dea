"""Leases beyond their connection and beyond their daemon: what is saved, and what a successor makes of it."""

from dataclasses import replace
from typing import ClassVar

import pytest

from serverless_triton.loader.cache import ImageCache
from serverless_triton.loader.device_state import NO_DEVICES
from serverless_triton.loader.effects import RecordedEffects
from serverless_triton.loader.errors import ImageLeased, ImagePinned
from serverless_triton.loader.keeper import Keeper
from serverless_triton.loader.replies import Attached, Reclaimed, Reply
from serverless_triton.loader.requests import LeaseCount
from serverless_triton.loader.state import DaemonState, StateEncoder, decode_state
from tests.unit.loader.keeper_driver import MEGABYTES, attach, checkpoint, connect, finish, loaded, process, session


@pytest.fixture
def effects() -> RecordedEffects:
    return RecordedEffects()


@pytest.fixture
def keeper(effects: RecordedEffects) -> Keeper:
    return connect(Keeper(ImageCache(4 * MEGABYTES), effects))


def attached(keeper: Keeper, effects: RecordedEffects, client: int, path: str = "/a") -> Attached:
    attach(keeper, client, 1, checkpoint(path), now_s=0)
    if effects.started and not effects.to(client):
        finish(keeper, effects, now_s=1)
    reply = effects.to(client)[-1]
    assert isinstance(reply, Attached)
    return reply


def left_by(effects: RecordedEffects) -> DaemonState:
    """What a daemon that keeps nothing on GPUs leaves if it is killed now."""
    return DaemonState(store=effects.saved[-1], devices=NO_DEVICES)


def successor(effects: RecordedEffects) -> tuple[Keeper, RecordedEffects]:
    """What takes over from a daemon that was killed now, as its clients 10 and on see it."""
    fresh = RecordedEffects()
    keeper = Keeper(ImageCache(4 * MEGABYTES), fresh)
    keeper.adopt(decode_state(StateEncoder().encode(left_by(effects))).store, first_client=10)
    return keeper, fresh


class Ordered(RecordedEffects):
    """Writes down how many leases were saved when each reply went out."""

    saved_leases: ClassVar[list[int]] = []

    def reply(self, client: int, message: Reply) -> None:
        self.saved_leases.append(sum(lease.count for lease in self.saved[-1].leases))
        super().reply(client, message)


def test_a_lease_is_saved_before_it_is_told() -> None:
    effects = Ordered()
    keeper = connect(Keeper(ImageCache(MEGABYTES), effects))
    for client in (1, 2):
        attach(keeper, client, 1, checkpoint("/a"), now_s=0)
    finish(keeper, effects, now_s=1)
    attach(keeper, 3, 1, checkpoint("/a"), now_s=2)

    assert effects.saved_leases == [1, 2, 3]


def test_what_a_load_overwrites_is_forgotten_before_it_begins(keeper: Keeper, effects: RecordedEffects) -> None:
    old = loaded(keeper, effects, checkpoint("/old", 3 * MEGABYTES))
    attach(keeper, 1, 1, checkpoint("/new", 3 * MEGABYTES), now_s=2)

    assert effects.started[-1].checkpoint.path == "/new"
    assert old.id not in {record.id for record in effects.saved[-1].images}


def test_a_successor_has_the_images_where_they_were(keeper: Keeper, effects: RecordedEffects) -> None:
    image = loaded(keeper, effects, "/a")
    keeper.pin(1, 1, checkpoint("/a"), now_s=1)
    keeper.prefetch(1, 1, checkpoint("/loading"), now_s=1)

    after, world = successor(effects)
    after.connect(100, process(1))
    attach(after, 100, 1, checkpoint("/a"), now_s=9)
    reply = world.to(100)[0]
    assert isinstance(reply, Attached)
    assert (reply.image_id, reply.extents, reply.receipt.tier) == (image.id, image.extents, "dram")
    assert [status.path for status in after.snapshot().status.images] == ["/a"]
    with pytest.raises(ImagePinned):
        after.evict(100, 2, "/a", now_s=9)


def test_a_successor_numbers_images_on(keeper: Keeper, effects: RecordedEffects) -> None:
    first = attached(keeper, effects, 1)
    keeper.release(1, first.image_id, now_s=9)
    keeper.evict(2, 1, "/a", now_s=2)

    after, world = successor(effects)
    after.connect(100, process(1))
    assert attached(after, world, 100).image_id > first.image_id


def test_leases_of_the_living_hold_until_their_process_ends(keeper: Keeper, effects: RecordedEffects) -> None:
    attached(keeper, effects, 1)
    after, world = successor(effects)
    after.connect(100, process(2))

    assert world.watched == [(10, process(1))]
    status = after.snapshot().status.images[0]
    assert (status.leases, status.orphaned_leases) == (1, 1)
    with pytest.raises(ImageLeased):
        after.evict(100, 1, "/a", now_s=2)
    after.process_ended(10, now_s=3)
    after.evict(100, 2, "/a", now_s=4)
    assert after.snapshot().status.images == ()


def test_a_process_reclaims_its_own_leases_and_no_others(keeper: Keeper, effects: RecordedEffects) -> None:
    image_id = attached(keeper, effects, 1).image_id
    attached(keeper, effects, 1)
    attached(keeper, effects, 2)
    after, world = successor(effects)
    after.connect(100, process(1))

    after.reclaim(
        100, 5, "arena", session(1), [LeaseCount(image_id=image_id, count=9), LeaseCount(image_id=77, count=1)], now_s=3
    )
    assert world.to(100) == [Reclaimed(id=5, arena_id="arena", leases=(LeaseCount(image_id=image_id, count=2),))]
    assert after.snapshot().status.images[0].orphaned_leases == 1
    after.release(100, image_id, now_s=9)
    after.release(100, image_id, now_s=9)
    assert after.snapshot().status.images[0].leases == 1


def test_a_process_that_only_has_the_same_pid_reclaims_nothing(keeper: Keeper, effects: RecordedEffects) -> None:
    image_id = attached(keeper, effects, 1).image_id
    after, world = successor(effects)
    after.connect(100, replace(process(1), start_time=999))

    after.reclaim(100, 5, "arena", session(1), [LeaseCount(image_id=image_id, count=1)], now_s=3)
    assert world.to(100) == [Reclaimed(id=5, arena_id="arena", leases=())]


def test_leases_of_another_arena_are_nobody_s(keeper: Keeper, effects: RecordedEffects) -> None:
    image_id = attached(keeper, effects, 1).image_id
    after, world = successor(effects)
    after.connect(100, process(1))

    after.reclaim(100, 5, "another", session(1), [LeaseCount(image_id=image_id, count=1)], now_s=3)
    assert world.to(100) == [Reclaimed(id=5, arena_id="arena", leases=())]


def test_a_connection_that_breaks_does_not_end_the_leases_of_a_process_that_lives(
    keeper: Keeper, effects: RecordedEffects
) -> None:
    image_id = attached(keeper, effects, 1).image_id
    keeper.disconnect(1, now_s=2)
    assert effects.watched == [(1, process(1))]
    assert keeper.snapshot().status.images[0].orphaned_leases == 1

    keeper.connect(50, process(1))
    keeper.reclaim(50, 1, "arena", session(1), [LeaseCount(image_id=image_id, count=1)], now_s=3)
    keeper.process_ended(1, now_s=3)  # a late word on what is no orphan any more
    status = keeper.snapshot().status.images[0]
    assert (status.leases, status.orphaned_leases) == (1, 0)


def test_nothing_is_saved_twice(keeper: Keeper, effects: RecordedEffects) -> None:
    attached(keeper, effects, 1)
    before = len(effects.saved)
    keeper.unpin(1, 2, "/a", now_s=9)
    keeper.release(1, 999, now_s=9)

    assert len(effects.saved) == before


def test_what_a_session_does_not_reclaim_has_ended(keeper: Keeper, effects: RecordedEffects) -> None:
    image_id = attached(keeper, effects, 1).image_id
    attached(keeper, effects, 1)
    after, _ = successor(effects)
    after.connect(100, process(1))

    after.reclaim(100, 5, "arena", session(1), [LeaseCount(image_id=image_id, count=1)], now_s=3)
    status = after.snapshot().status.images[0]
    assert (status.leases, status.orphaned_leases) == (1, 0)


def test_sessions_of_one_process_keep_their_leases_apart(keeper: Keeper, effects: RecordedEffects) -> None:
    image_id = attached(keeper, effects, 1).image_id
    keeper.connect(51, process(1))
    keeper.attach(51, 1, "another", checkpoint("/a"), 2, progress=False)
    assert {lease.count for lease in effects.saved[-1].leases} == {1}
    after, _ = successor(effects)
    after.connect(100, process(1))

    after.reclaim(100, 5, "arena", session(1), [LeaseCount(image_id=image_id, count=1)], now_s=3)
    status = after.snapshot().status.images[0]
    assert (status.leases, status.orphaned_leases) == (2, 1)


def test_an_encoder_remembers_images_and_nothing_that_changed(keeper: Keeper, effects: RecordedEffects) -> None:
    encoder = StateEncoder()
    for path in ("/a", "/b", '/"images":[]'):
        loaded(keeper, effects, path)
        keeper.pin(1, 1, checkpoint("/a"), now_s=1)
        assert decode_state(encoder.encode(left_by(effects))) == left_by(effects)
    keeper.unpin(1, 2, "/a", now_s=9)
    keeper.evict(1, 3, "/b", now_s=2)

    assert decode_state(encoder.encode(left_by(effects))) == left_by(effects)
