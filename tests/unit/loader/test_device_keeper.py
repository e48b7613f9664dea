"""How images are brought onto GPUs and who is told, with effects that are only written down."""

import pytest

from serverless_triton.loader.device_images import DeviceImageState
from serverless_triton.loader.errors import CheckpointCorrupted, DeviceOutOfMemory, LoaderError, StoreCancelled
from serverless_triton.loader.replies import Progress
from tests.unit.loader.device_keeper_driver import FROM_DRAM, FROM_SSD, GPU, MEGABYTES, World


@pytest.fixture
def world() -> World:
    return World()


def test_an_image_is_given_memory_then_bytes_in_dram_then_the_copy(world: World) -> None:
    world.attach(1, "/a")
    image = world.image("/a")
    assert world.effects.done == [("allocate", image.id)]

    world.keeper.allocated(image, 1.0)
    assert world.effects.done[1:] == [("lease_dram", image.id)]

    world.keeper.loaded(image, FROM_SSD, 3.0)
    assert world.effects.done[2:] == [("copy", image.id)]
    assert world.answers(1) == []

    world.keeper.copied(image, 3.5)
    assert world.effects.done[3:] == [("release_dram", image.id)]
    (answer,) = world.answers(1)
    assert (answer.device, answer.memory_bytes, answer.files[0].bytes) == (GPU, 10 * MEGABYTES, 10 * MEGABYTES)


def test_the_receipt_s_parts_add_up_to_the_wait_of_each_client(world: World) -> None:
    world.attach(1, "/a", 0.0)
    world.keeper.allocated(world.image("/a"), 0.5)
    world.attach(2, "/a", 2.5)
    world.keeper.loaded(world.image("/a"), FROM_SSD, 3.0)
    world.attach(3, "/a", 3.25)
    world.keeper.copied(world.image("/a"), 3.5)

    receipts = [world.answers(client)[0].receipt for client in (1, 2, 3)]
    assert [(r.queue_s, r.read_s, r.copy_s) for r in receipts] == [(1.0, 2.0, 0.5), (0.5, 0.0, 0.5), (0.0, 0.0, 0.25)]
    assert all((r.tier, r.verified, r.scattered) == ("ssd", True, False) for r in receipts)
    assert world.done("copy") == [world.image("/a").id]


def test_what_stayed_on_the_device_costs_nothing(world: World) -> None:
    image = world.resident("/a")

    world.attach(2, "/a", 9.0)

    (answer,) = world.answers(2)
    assert (answer.image_id, answer.receipt.tier, answer.receipt.verified) == (image.id, "gpu", True)
    assert (answer.receipt.queue_s, answer.receipt.read_s, answer.receipt.copy_s) == (0.0, 0.0, 0.0)
    assert world.effects.done == []


@pytest.mark.parametrize("error", [DeviceOutOfMemory("full"), CheckpointCorrupted("bad chunk")])
def test_all_who_wait_learn_of_a_failure_and_the_memory_is_given_back(world: World, error: LoaderError) -> None:
    world.attach(1, "/a")
    world.attach(2, "/a")
    image = world.image("/a")
    world.keeper.allocated(image, 1.0)

    world.keeper.failed(image, error, 2.0)

    assert world.failures(1) == world.failures(2) == [type(error).__name__]
    assert world.done("free") == [image.id]
    world.keeper.freed(image, 3.0)
    assert world.keeper.status()[0].used_bytes == 0


def test_a_failed_copy_gives_the_dram_lease_back(world: World) -> None:
    world.attach(1, "/a")
    image = world.image("/a")
    world.keeper.allocated(image, 1.0)
    world.keeper.loaded(image, FROM_DRAM, 2.0)

    world.keeper.failed(image, DeviceOutOfMemory("full"), 3.0)

    assert world.done("release_dram") == [image.id]
    assert world.keeper.status()[0].failed_copies == 1


def test_a_load_that_nobody_waits_for_is_stopped(world: World) -> None:
    world.attach(1, "/a")
    image = world.image("/a")
    world.keeper.allocated(image, 1.0)

    assert world.keeper.cancel(1, 100, 2.0)

    assert world.failures(1) == ["StoreCancelled"]
    assert world.done("stop_waiting_for_dram") == [image.id]
    world.keeper.failed(image, StoreCancelled("stopped"), 3.0)
    assert world.done("free") == [image.id]


def test_who_joins_a_load_that_is_being_stopped_gets_a_new_one(world: World) -> None:
    world.attach(1, "/a")
    image = world.image("/a")
    world.keeper.allocated(image, 1.0)
    world.keeper.disconnect(1, 2.0)
    world.attach(2, "/a", 2.5)

    world.keeper.failed(image, StoreCancelled("stopped"), 3.0)
    world.keeper.loaded(image, FROM_DRAM, 4.0)
    world.keeper.copied(image, 4.5)

    assert world.done("lease_dram") == [image.id, image.id]
    assert world.failures(2) == []
    assert len(world.answers(2)) == 1


def test_memory_that_comes_when_nobody_waits_any_more_is_given_back(world: World) -> None:
    world.attach(1, "/a")
    image = world.image("/a")
    world.keeper.disconnect(1, 0.5)

    world.keeper.allocated(image, 1.0)

    assert world.done("free") == [image.id]
    assert world.done("lease_dram") == []


def test_a_copy_that_has_begun_goes_on_and_stays(world: World) -> None:
    world.attach(1, "/a")
    image = world.image("/a")
    world.keeper.allocated(image, 1.0)
    world.keeper.loaded(image, FROM_DRAM, 2.0)
    world.keeper.disconnect(1, 2.5)

    world.keeper.copied(image, 3.0)

    assert image.state is DeviceImageState.READY
    assert not image.leases


def all_in_dram(request_id: int) -> Progress:
    return Progress(id=request_id, bytes_done=FROM_SSD.bytes, bytes_total=FROM_SSD.bytes, bytes_ahead=0)


def test_progress_goes_to_those_who_asked_for_it(world: World) -> None:
    world.attach(1, "/a", progress=True)
    world.attach(2, "/a")
    world.keeper.allocated(world.image("/a"), 1.0)

    world.keeper.loading(world.image("/a"), Progress(id=7, bytes_done=3, bytes_total=10, bytes_ahead=4))

    assert world.effects.replies == [(1, Progress(id=100, bytes_done=3, bytes_total=10, bytes_ahead=4))]


def test_progress_ends_with_all_bytes_in_dram(world: World) -> None:
    world.attach(1, "/a", progress=True)
    image = world.image("/a")
    world.keeper.allocated(image, 1.0)

    world.keeper.loaded(image, FROM_SSD, 3.0)

    assert world.effects.replies == [(1, all_in_dram(100))]


def test_who_joins_while_the_bytes_are_copied_hears_at_once_that_all_are_in_dram(world: World) -> None:
    world.attach(1, "/a")
    image = world.image("/a")
    world.keeper.allocated(image, 1.0)
    world.keeper.loaded(image, FROM_SSD, 3.0)

    world.attach(2, "/a", progress=True)

    assert world.effects.replies == [(2, all_in_dram(200))]


def test_who_waits_is_told_of_the_end(world: World) -> None:
    world.attach(1, "/a")

    world.keeper.shut_down()

    assert world.failures(1) == ["StoreUnavailable"]
