"""The decisions over images on GPUs, with effects that are only written down."""

from dataclasses import replace

import pytest

from serverless_triton.loader.checkpoint import Checkpoint, CheckpointFile
from serverless_triton.loader.device_effects import RecordedDeviceEffects
from serverless_triton.loader.device_images import DeviceImage, DeviceImageState
from serverless_triton.loader.device_keeper import DeviceKeeper
from serverless_triton.loader.errors import (
    CheckpointCorrupted,
    DeviceOutOfMemory,
    DeviceUnavailable,
    ImageLeased,
    LoaderError,
    StoreCancelled,
    StoreFull,
)
from serverless_triton.loader.peers import Holder
from serverless_triton.loader.processes import ProcessId
from serverless_triton.loader.receipts import Estimate, LoadReceipt
from serverless_triton.loader.replies import DeviceAttached, DevicesReclaimed, Failed, Progress
from serverless_triton.loader.requests import AttachDevice, LeaseCount, ReclaimDevices

GPU = "GPU-1"
MEGABYTES = 1 << 20
FROM_SSD = LoadReceipt(
    tier="ssd",
    bytes=10 * MEGABYTES,
    queue_s=1.0,
    read_s=2.0,
    copy_s=0.0,
    attach_s=0.0,
    direct_io=True,
    verified=True,
    scattered=True,
    throttle_bytes_per_second=0,
)
FROM_DRAM = replace(FROM_SSD, tier="dram", queue_s=0.0, read_s=0.0)
DRAM_ESTIMATE = Estimate(tier="ssd", queue_s=1.0, read_s=2.0, copy_s=0.0, total_s=3.0, is_measured=True)


def checkpoint(path: str, megabytes: int = 10, mtime_ns: int = 0) -> Checkpoint:
    file = CheckpointFile(name="m", real_path=f"{path}/m", bytes=megabytes * MEGABYTES, mtime_ns=mtime_ns, inode=1)
    return Checkpoint(path=path, device="disk:1", files=(file,))


def process(client: int) -> ProcessId:
    return ProcessId(pid=1000 + client, start_time=client)


class World:
    """A device keeper whose effects a test plays."""

    def __init__(self, budget_megabytes: int = 30) -> None:
        self.effects = RecordedDeviceEffects()
        self.keeper = DeviceKeeper(budget_megabytes * MEGABYTES, self.effects)
        for client in (1, 2, 3):
            self.keeper.connect(client, process(client))
        self.images: dict[int, DeviceImage] = {}

    def attach(self, client: int, path: str, now_s: float = 0.0, *, device: str = GPU, progress: bool = False) -> None:
        self.ask(client, checkpoint(path), now_s, device=device, progress=progress)

    def ask(
        self, client: int, wanted: Checkpoint, now_s: float = 0.0, *, device: str = GPU, progress: bool = False
    ) -> None:
        request = AttachDevice(
            id=100 * client, path=wanted.path, device=device, session=f"session {client}", progress=progress
        )
        self.keeper.attach(client, request, wanted, now_s)

    def reclaim(self, client: int, *leases: LeaseCount, session: str = "session 1") -> None:
        self.keeper.reclaim(client, ReclaimDevices(id=1, session=session, leases=leases), 5.0)

    def image(self, path: str, device: str = GPU) -> DeviceImage:
        found = self.keeper._images.find(device, checkpoint(path).files)
        assert found is not None
        return found

    def arrive(self, path: str, receipt: LoadReceipt = FROM_DRAM, device: str = GPU) -> DeviceImage:
        """All that lies between an attach and its answer."""
        image = self.image(path, device)
        self.keeper.allocated(image, 1.0)
        self.keeper.loaded(image, receipt, 3.0)
        self.keeper.copied(image, 3.5)
        return image

    def resident(self, path: str, client: int = 1) -> DeviceImage:
        """On the device, and nobody uses it."""
        self.attach(client, path)
        image = self.arrive(path)
        self.keeper.release(client, image.id, 4.0)
        self.effects.handed_over.clear()
        self.effects.done.clear()
        return image

    def done(self, what: str) -> list[int]:
        return [image_id for name, image_id in self.effects.done if name == what]

    def answers(self, client: int) -> list[DeviceAttached]:
        return [message for receiver, message in self.effects.handed_over if receiver == client]

    def failures(self, client: int) -> list[str]:
        return [m.error for receiver, m in self.effects.replies if receiver == client and isinstance(m, Failed)]


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


def test_progress_goes_to_those_who_asked_for_it(world: World) -> None:
    world.attach(1, "/a", progress=True)
    world.attach(2, "/a")
    world.keeper.allocated(world.image("/a"), 1.0)

    world.keeper.loading(world.image("/a"), 3, 10)

    assert world.effects.replies == [(1, Progress(id=100, bytes_done=3, bytes_total=10))]


def test_progress_ends_with_all_bytes_in_dram(world: World) -> None:
    world.attach(1, "/a", progress=True)
    image = world.image("/a")
    world.keeper.allocated(image, 1.0)

    world.keeper.loaded(image, FROM_SSD, 3.0)

    assert world.effects.replies == [(1, Progress(id=100, bytes_done=FROM_SSD.bytes, bytes_total=FROM_SSD.bytes))]


def test_who_joins_while_the_bytes_are_copied_hears_at_once_that_all_are_in_dram(world: World) -> None:
    world.attach(1, "/a")
    image = world.image("/a")
    world.keeper.allocated(image, 1.0)
    world.keeper.loaded(image, FROM_SSD, 3.0)

    world.attach(2, "/a", progress=True)

    assert world.effects.replies == [(2, Progress(id=200, bytes_done=FROM_SSD.bytes, bytes_total=FROM_SSD.bytes))]


def test_a_leased_image_is_not_evicted_and_an_idle_one_is(world: World) -> None:
    world.attach(1, "/a")
    image = world.arrive("/a")
    with pytest.raises(ImageLeased, match="in use on GPU-1"):
        world.keeper.evictable("/a")

    world.keeper.release(1, image.id, 5.0)
    assert world.keeper.evictable("/a") == [image.id]
    world.keeper.evict("/a")

    assert world.done("free") == [image.id]


def test_a_rewritten_checkpoint_is_another_image_and_the_old_one_goes(world: World) -> None:
    old = world.resident("/a")

    world.ask(1, checkpoint("/a", mtime_ns=7))

    assert world.done("free") == [old.id]


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


def test_who_waits_is_told_of_the_end(world: World) -> None:
    world.attach(1, "/a")

    world.keeper.shut_down()

    assert world.failures(1) == ["StoreUnavailable"]


def test_what_copies_take_is_counted(world: World) -> None:
    world.attach(1, "/a")
    world.arrive("/a")
    world.attach(2, "/a")

    (status,) = world.keeper.status()

    assert (status.attaches, status.copies, status.copied_bytes, status.copy_s) == (2, 1, 10 * MEGABYTES, 0.5)
    assert status.copy_bytes_per_second == 20 * MEGABYTES
    assert status.images[0].state == "ready"
