"""The room for what a successor is told: what is let in fits; what does not is refused, and nobody was told of it."""

from dataclasses import replace
from random import Random

import pytest

from serverless_triton.loader.cache import Image, ImageCache, ImageState
from serverless_triton.loader.checkpoint import Checkpoint, CheckpointFile
from serverless_triton.loader.device_state import NO_DEVICES, DeviceLeaseRecord
from serverless_triton.loader.effects import RecordedEffects
from serverless_triton.loader.errors import StoreFull, StoreProtocolError
from serverless_triton.loader.keeper import Keeper
from serverless_triton.loader.peers import MAX_SESSION_CHARACTERS, Holder, Peers
from serverless_triton.loader.replies import Attached, Failed
from serverless_triton.loader.state import (
    DaemonState,
    ImageRecord,
    LeaseRecord,
    Legacy,
    MemorySlots,
    StateEncoder,
    StoreState,
    decode_state,
)
from tests.unit.loader.device_keeper_driver import World
from tests.unit.loader.keeper_driver import MEGABYTES, attach, checkpoint, connect, finish, loaded, process

from .work_counter import instructions_of

SLOT_BYTES = 16 << 10
LARGE_BYTES = 64 * MEGABYTES
HOLDER = Holder(process=process(1), session="s")


class SavedInSlots(RecordedEffects):
    """Saves where a daemon does. `slots` has room for a few dozen images."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = MemorySlots(SLOT_BYTES)
        self.legacy = Legacy(self.slots)

    def save(self, state: StoreState) -> None:
        self.legacy.save_store(state)


def store_of(effects: SavedInSlots) -> Keeper:
    return connect(Keeper(ImageCache(4096 * MEGABYTES, effects.legacy.room.images_bytes), effects))


def errors(effects: RecordedEffects, client: int) -> list[str]:
    return [reply.error for reply in effects.to(client) if isinstance(reply, Failed)]


def state_of(*, images: tuple[ImageRecord, ...] = (), leases: tuple[LeaseRecord, ...] = ()) -> StoreState:
    return StoreState(arena_id="a", next_image_id=9, images=images, leases=leases, in_flight=())


def lease(image_id: int) -> LeaseRecord:
    return LeaseRecord(image_id=image_id, holder=HOLDER, count=1)


def test_the_least_recently_used_image_goes_when_there_is_no_room_to_describe_another() -> None:
    effects = SavedInSlots()
    keeper = store_of(effects)
    for number in range(200):
        loaded(keeper, effects, f"/lora{number}")

    paths = [image.path for image in keeper.snapshot().status.images]
    assert 10 < len(paths) < 200
    assert paths == [f"/lora{number}" for number in range(200 - len(paths), 200)]


def test_a_store_of_images_in_use_that_it_could_not_describe_is_full() -> None:
    effects = SavedInSlots()
    keeper = store_of(effects)
    for number in range(200):
        keeper.pin(99, 1, checkpoint(f"/lora{number}"), now_s=0)
        if effects.started[-1].state is ImageState.LOADING:
            finish(keeper, effects, now_s=1)
    pinned = len(keeper.snapshot().status.images)
    attach(keeper, 1, 1, checkpoint("/one more"), now_s=2)

    assert 10 < pinned < 200
    [reply] = effects.to(1)
    assert isinstance(reply, Failed)
    assert reply.error == "StoreFull"
    assert "to describe its images" in reply.message
    with pytest.raises(StoreFull, match="to describe its images"):
        keeper.estimate(1, 2, checkpoint("/one more"), "ssd")


def test_whatever_is_let_in_can_be_written_down() -> None:
    effects = SavedInSlots()
    keeper = store_of(effects)
    random = Random(4)
    for number in range(600):
        client = random.choice((1, 2, 3, 4))
        size_bytes = random.choice((MEGABYTES, 5 * LARGE_BYTES))
        before = len(effects.started)
        attach(keeper, client, number, checkpoint(f"/{random.randrange(60)}", size_bytes), now_s=number)
        if len(effects.started) > before:
            finish(keeper, effects, now_s=number)
        if random.random() < 0.3:
            held = [reply for reply in effects.to(client) if isinstance(reply, Attached)]
            keeper.release(client, random.choice(held).image_id if held else 1, now_s=number)

    payload = effects.slots.read()
    assert payload is not None
    told = sum(lease.count for lease in decode_state(payload).store.leases)
    assert told == sum(image.leases for image in keeper.snapshot().status.images)
    assert {error for client in (1, 2, 3, 4) for error in errors(effects, client)} == {"StoreFull"}


@pytest.mark.parametrize("pieces", [1, 3, 20])
def test_a_record_is_no_longer_than_it_was_counted(pieces: int) -> None:
    cache = with_holes_of_64_mebibytes(pieces)
    file = CheckpointFile(name="é", real_path='/"é"/é', bytes=LARGE_BYTES * pieces, mtime_ns=1 << 62, inode=1 << 62)
    image = cache.admit(Checkpoint(path='/"é"', device="disk:1", files=(file,)))
    unplaced_bytes = image.record_bytes
    cache.place(image)
    cache.ready(image, verified=False)

    assert [len(pieces_of_file) for pieces_of_file in image.files] == [pieces]
    assert length_of(image) <= image.record_bytes <= unplaced_bytes


def with_holes_of_64_mebibytes(holes: int) -> ImageCache:
    """Between images that are leased, and so not moved."""
    cache = ImageCache(2 * holes * LARGE_BYTES)
    images = [cache.admit(checkpoint(f"/{number}", LARGE_BYTES)) for number in range(2 * holes)]
    for image in images:
        cache.place(image)
        cache.ready(image, verified=False)
        cache.lease(image, client=1)
    for image in images[::2]:
        cache.release(image.id, client=1)
        cache.forget(image)
    return cache


def length_of(image: Image) -> int:
    """What the image adds to a state."""
    states = [DaemonState(store=state_of(images=images), devices=NO_DEVICES) for images in ((), (image.record,))]
    without, with_it = (len(StateEncoder().encode(state)) for state in states)
    return with_it - without


def test_a_lease_that_could_not_be_saved_is_refused_and_there_is_none() -> None:
    effects = RecordedEffects(most_leases=1)
    keeper = connect(Keeper(ImageCache(4 * MEGABYTES), effects))
    attach(keeper, 1, 1, checkpoint("/a"), now_s=0)
    finish(keeper, effects, now_s=1)
    attach(keeper, 2, 1, checkpoint("/a"), now_s=2)

    assert errors(effects, 2) == ["StoreFull"]
    assert keeper.snapshot().status.images[0].leases == 1
    attached = effects.to(1)[0]
    assert isinstance(attached, Attached)
    keeper.release(1, attached.image_id, now_s=3)
    attach(keeper, 2, 2, checkpoint("/a"), now_s=4)
    assert isinstance(effects.to(2)[-1], Attached)


def test_a_load_that_ends_when_leases_have_no_room_is_kept_and_each_waiter_told() -> None:
    effects = RecordedEffects(most_leases=1)
    keeper = connect(Keeper(ImageCache(4 * MEGABYTES), effects))
    for client in (1, 2, 3):
        attach(keeper, client, 1, checkpoint("/a"), now_s=0)
    finish(keeper, effects, now_s=1)

    assert isinstance(effects.to(1)[0], Attached)
    assert errors(effects, 2) == errors(effects, 3) == ["StoreFull"]
    assert [(image.state, image.leases) for image in keeper.snapshot().status.images] == [("ready", 1)]


def test_a_lease_on_a_gpu_that_could_not_be_saved_is_refused_and_there_is_none() -> None:
    world = World()
    world.effects.most_leases = 1
    for client in (1, 2):
        world.attach(client, "/a")
    image = world.arrive("/a")
    world.attach(3, "/a", 5.0)

    assert (len(world.answers(1)), world.answers(2), world.answers(3)) == (1, [], [])
    assert world.failures(2) == world.failures(3) == ["StoreFull"]
    assert image.leases.total() == 1


def test_leases_that_have_no_room_leave_what_was_saved_before() -> None:
    slots = MemorySlots(SLOT_BYTES)
    legacy = Legacy(slots)
    legacy.save_store(state_of(leases=(lease(1),)))
    before = slots.read()
    device_lease = DeviceLeaseRecord(image_id=1, device="GPU-1", bytes=1, holder=HOLDER, count=1)

    with pytest.raises(StoreFull, match="release attachments"):
        legacy.save_store(state_of(leases=tuple(map(lease, range(100)))))
    with pytest.raises(StoreFull, match="release attachments"):
        legacy.save_devices(replace(NO_DEVICES, leases=(device_lease,) * 100))
    assert slots.read() == before

    legacy.save_devices(replace(NO_DEVICES, leases=(device_lease,)))
    payload = slots.read()
    assert payload is not None
    state = decode_state(payload)
    assert (state.store.leases, state.devices.leases) == ((lease(1),), (device_lease,))


def test_one_more_lease_among_thousands_is_encoded_with_little_work() -> None:
    encoder, leases = StateEncoder(), tuple(map(lease, range(4000)))
    encoder.encode(DaemonState(store=state_of(leases=leases), devices=NO_DEVICES))
    more = DaemonState(store=state_of(leases=(*leases, lease(4000))), devices=NO_DEVICES)
    encoded: list[bytes] = []

    instructions_of(lambda: encoded.append(encoder.encode(more)), at_most=40 * len(leases))

    assert decode_state(encoded[0]) == more


def test_leases_that_did_not_change_are_saved_as_the_same_records() -> None:
    effects = RecordedEffects()
    keeper = connect(Keeper(ImageCache(4 * MEGABYTES), effects))
    for client in (1, 2, 3):
        attach(keeper, client, 1, checkpoint("/a"), now_s=0)
    finish(keeper, effects, now_s=1)
    before = effects.saved[-1].leases
    attach(keeper, 2, 2, checkpoint("/a"), now_s=2)
    after = effects.saved[-1].leases

    assert [record is known for record, known in zip(after, before, strict=True)] == [True, False, True]
    assert [record.count for record in after] == [1, 2, 1]


def test_a_session_has_a_short_name_and_keeps_it() -> None:
    peers = Peers()
    peers.connect(1, process(1))
    with pytest.raises(StoreProtocolError, match="at most"):
        peers.name(1, "s" * (MAX_SESSION_CHARACTERS + 1))
    peers.name(1, "s")
    peers.name(1, "s")
    with pytest.raises(StoreProtocolError, match="named first"):
        peers.name(1, "t")

    assert peers.holder_of(1).session == "s"
