"""What fits on GPUs and what goes for it, with effects that are only written down; what copies take."""

from dataclasses import replace

import pytest

from serverless_triton.loader.device_images import DeviceImageState
from serverless_triton.loader.errors import DeviceUnavailable, StoreFull
from serverless_triton.loader.receipts import Estimate
from tests.unit.loader.device_keeper_driver import DRAM_ESTIMATE, GPU, MEGABYTES, World, checkpoint


@pytest.fixture
def world() -> World:
    return World()


def test_the_least_recently_used_image_goes_and_a_leased_one_stays(world: World) -> None:
    oldest, older = world.resident("/a"), world.resident("/b")
    world.attach(1, "/a")  # leased again, and used last
    world.resident("/c")
    world.effects.done.clear()

    world.attach(2, "/d")

    assert world.done("free") == [older.id]
    assert world.done("allocate") == []
    assert oldest.state is DeviceImageState.READY
    world.keeper.freed(older, 5.0)
    assert world.done("allocate") == [world.image("/d").id]


def test_leased_images_leave_no_room(world: World) -> None:
    for path in ("/a", "/b", "/c"):
        world.attach(1, path)
        world.arrive(path)

    world.attach(2, "/d")

    assert world.failures(2) == ["StoreFull"]
    assert world.keeper.status()[0].used_bytes == 30 * MEGABYTES


def test_what_can_never_fit_is_refused_at_once(world: World) -> None:
    with pytest.raises(StoreFull, match="raise its GPU budget"):
        world.ask(1, checkpoint("/a", 31))
    assert world.keeper._images.all == []


def test_without_a_budget_there_is_no_gpu_tier() -> None:
    world = World(budget_megabytes=0)

    with pytest.raises(DeviceUnavailable, match="--gpu-bytes"):
        world.attach(1, "/a")


def test_a_device_that_is_not_there_leaves_no_trace(world: World) -> None:
    with pytest.raises(DeviceUnavailable, match="no device GPU-9; there are GPU-1, GPU-2"):
        world.attach(1, "/a", device="GPU-9")
    with pytest.raises(DeviceUnavailable, match="GPU-9"):
        world.keeper.estimate(checkpoint("/a"), "GPU-9", lambda: DRAM_ESTIMATE)

    assert world.effects.done == []
    assert world.keeper.status() == ()


def test_devices_have_budgets_of_their_own(world: World) -> None:
    for path in ("/a", "/b", "/c"):
        world.attach(1, path)
        world.arrive(path)

    world.attach(2, "/a", device="GPU-2")
    world.arrive("/a", device="GPU-2")

    assert world.answers(2)[0].device == "GPU-2"
    assert [status.used_bytes for status in world.keeper.status()] == [30 * MEGABYTES, 10 * MEGABYTES]


def test_a_rewritten_checkpoint_is_another_image_and_the_old_one_goes(world: World) -> None:
    old = world.resident("/a")

    world.ask(1, checkpoint("/a", mtime_ns=7))

    assert world.done("free") == [old.id]


def test_an_estimate_is_the_slower_of_reading_and_copying(world: World) -> None:
    assumed = world.keeper.estimate(checkpoint("/b"), GPU, lambda: DRAM_ESTIMATE)
    assert assumed.total_s == 3.0
    assert not assumed.is_measured

    world.resident("/a")  # 10 MiB in half a second
    soon = replace(DRAM_ESTIMATE, queue_s=0.0, read_s=0.25)
    measured = world.keeper.estimate(checkpoint("/b", 20), GPU, lambda: soon)
    assert (measured.copy_s, measured.total_s, measured.is_measured) == (1.0, 1.0, True)


def test_an_estimate_of_what_is_on_the_device_asks_for_no_room_in_dram(world: World) -> None:
    def no_room() -> Estimate:
        raise StoreFull("full")

    world.resident("/a")

    estimate = world.keeper.estimate(checkpoint("/a"), GPU, no_room)

    assert (estimate.tier, estimate.total_s, estimate.is_measured) == ("gpu", 0.0, True)


def test_an_estimate_says_where_there_is_no_room(world: World) -> None:
    for path in ("/a", "/b", "/c"):
        world.attach(1, path)
        world.arrive(path)

    with pytest.raises(StoreFull):
        world.keeper.estimate(checkpoint("/d"), GPU, lambda: DRAM_ESTIMATE)


def test_what_copies_take_is_counted(world: World) -> None:
    world.attach(1, "/a")
    world.arrive("/a")
    world.attach(2, "/a")

    (status,) = world.keeper.status()

    assert (status.attaches, status.copies, status.copied_bytes, status.copy_s) == (2, 1, 10 * MEGABYTES, 0.5)
    assert status.copy_bytes_per_second == 20 * MEGABYTES
    assert status.images[0].state == "ready"
