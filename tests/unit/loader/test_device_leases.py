"""Leases on images on GPUs, with effects that are only written down: who has them, what outlives whom."""

import pytest

from serverless_triton.loader.errors import ImageLeased
from serverless_triton.loader.peers import Holder
from serverless_triton.loader.replies import DevicesReclaimed
from serverless_triton.loader.requests import LeaseCount
from tests.unit.loader.device_keeper_driver import MEGABYTES, World, process


@pytest.fixture
def world() -> World:
    return World()


def test_a_leased_image_is_not_evicted_and_an_idle_one_is(world: World) -> None:
    world.attach(1, "/a")
    image = world.arrive("/a")
    with pytest.raises(ImageLeased, match="in use on GPU-1"):
        world.keeper.evictable("/a")

    world.keeper.release(1, image.id, 5.0)
    assert world.keeper.evictable("/a") == [image.id]
    world.keeper.evict("/a")

    assert world.done("free") == [image.id]


def test_what_is_on_its_way_to_a_device_is_not_said_to_be_held_by_tensors(world: World) -> None:
    world.attach(1, "/a")

    with pytest.raises(ImageLeased, match="/a is on its way to GPU-1"):
        world.keeper.evictable("/a")


def test_leases_outlive_the_connection_and_end_with_the_process(world: World) -> None:
    world.attach(1, "/a")
    image = world.arrive("/a")

    world.keeper.disconnect(1, 5.0)
    assert world.effects.watched == [(1, process(1))]
    assert image.leases.total() == 1

    world.keeper.process_ended(1, 6.0)
    assert image.leases.total() == 0


def test_a_process_that_reconnects_gets_its_leases_back(world: World) -> None:
    world.attach(1, "/a")
    image = world.arrive("/a")
    world.keeper.disconnect(1, 5.0)
    world.keeper.connect(9, process(1))

    world.reclaim(9, LeaseCount(image_id=image.id, count=3))

    reclaimed = DevicesReclaimed(id=1, leases=(LeaseCount(image_id=image.id, count=1),))
    assert world.effects.replies[-1] == (9, reclaimed)
    world.keeper.release(9, image.id, 6.0)
    assert image.is_evictable


def test_another_session_of_the_process_keeps_its_leases(world: World) -> None:
    world.attach(1, "/a")
    image = world.arrive("/a")
    world.keeper.disconnect(1, 5.0)
    world.keeper.connect(9, process(1))

    world.reclaim(9, LeaseCount(image_id=image.id, count=1), session="another")

    assert world.effects.replies[-1] == (9, DevicesReclaimed(id=1, leases=()))
    assert image.leases.total() == 1


def test_leases_that_the_client_has_no_more_end_when_it_comes_back(world: World) -> None:
    world.attach(1, "/a")
    image = world.arrive("/a")
    world.keeper.disconnect(1, 5.0)
    world.keeper.connect(9, process(1))

    world.reclaim(9)

    assert image.is_evictable


def test_the_next_daemon_counts_what_clients_hold_and_hands_it_to_nobody(world: World) -> None:
    world.attach(1, "/a")
    held = world.arrive("/a")
    world.attach(2, "/a")
    state = world.effects.saved[-1]

    successor = World()
    assert successor.keeper.adopt(state, 50) == 52
    assert successor.effects.watched == [(50, process(1)), (51, process(2))]
    assert successor.keeper.status()[0].held_bytes == 10 * MEGABYTES

    successor.attach(3, "/a")
    assert successor.image("/a").id > held.id
    assert successor.answers(3) == []
    successor.keeper.process_ended(50, 1.0)
    assert successor.keeper.status()[0].held_bytes == 10 * MEGABYTES
    successor.keeper.process_ended(51, 2.0)
    assert successor.keeper.status()[0].held_bytes == 0


def test_what_is_held_leaves_less_room(world: World) -> None:
    for path in ("/a", "/b", "/c"):
        world.attach(1, path)
        world.arrive(path)
    successor = World()
    successor.keeper.adopt(world.effects.saved[-1], 50)

    successor.attach(2, "/d")

    assert successor.failures(2) == ["StoreFull"]


def test_the_state_is_saved_before_a_lease_is_acknowledged(world: World) -> None:
    world.attach(1, "/a")
    world.arrive("/a")

    assert [lease.count for lease in world.effects.saved[-1].leases] == [1]
    assert world.effects.saved[-1].leases[0].holder == Holder(process=process(1), session="session 1")
