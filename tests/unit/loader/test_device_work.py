"""The threads that fill devices, with a core that only writes down what is asked of it and threads that don't wait."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from serverless_triton.loader import device_work
from serverless_triton.loader.checkpoint import Checkpoint, CheckpointFile
from serverless_triton.loader.device_images import DeviceImage
from serverless_triton.loader.device_work import DeviceWork
from serverless_triton.loader.errors import LoaderError, StoreCancelled

FILE_BYTES = 4096
CHECKPOINT = Checkpoint(
    path="/a",
    device="disk:1",
    files=(CheckpointFile(name="m", real_path="/a/m", bytes=FILE_BYTES, mtime_ns=0, inode=1),),
)


class Memory:
    """Of a device; it is free when nothing refers to it."""


class Copy:
    """Keeps its memory, as the core's does."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.copied_bytes = 0
        self.is_ended = False

    def copy(self, *_: object) -> None:
        self.copied_bytes = FILE_BYTES

    def cancel(self) -> None:
        self.is_ended = True

    def finish(self) -> None:
        if self.is_ended:
            raise StoreCancelled("cancelled")


class Core:
    """What the module under test uses of the core. `meanwhile` runs while the next copy is being made."""

    def __init__(self) -> None:
        self.copies: list[Copy] = []
        self.opened: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.DeviceMemory = SimpleNamespace(allocate=lambda _device, _size_bytes: Memory())
        self.ReadJob = lambda: SimpleNamespace(cancel=lambda: None)
        self.RegisteredMemory = lambda _arena: None

    def open(self, name: str) -> str:
        self.opened.append(name)
        return name

    def GpuCopy(self, memory: Memory, _offsets: list[int], _registered: None) -> Copy:  # noqa: N802
        self.meanwhile()
        self.copies.append(Copy(memory))
        return self.copies[-1]


class Pool:
    """Does at once what it is given."""

    def __init__(self, *_: object) -> None: ...

    def submit(self, work: Callable[..., None], *arguments: object) -> None:
        work(*arguments)


class Reports:
    def __init__(self) -> None:
        self.freed: list[int] = []

    def on_allocated(self, image: DeviceImage) -> None: ...

    def on_copied(self, image: DeviceImage) -> None: ...

    def on_device_failed(self, image: DeviceImage, error: LoaderError) -> None: ...

    def on_freed(self, image: DeviceImage) -> None:
        self.freed.append(image.id)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    core = Core()
    monkeypatch.setattr(device_work, "_core", core)
    monkeypatch.setattr(device_work, "device_of", core.open)
    monkeypatch.setattr(device_work, "ThreadPool", Pool)
    return core


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def work(core: Core, reports: Reports) -> DeviceWork:
    arena: Any = None
    return DeviceWork(arena, reports, lambda event: event())


@pytest.fixture
def image(work: DeviceWork) -> DeviceImage:
    """It has memory, and its checkpoint is about to be read."""
    image = DeviceImage(id=1, device="GPU-1", checkpoint=CHECKPOINT, bytes=2 << 20)
    work.allocate(image)
    work.expect(image)
    return image


def test_memory_that_is_given_back_while_a_read_prepares_to_copy_into_it_is_free(
    work: DeviceWork, core: Core, reports: Reports, image: DeviceImage
) -> None:
    core.meanwhile = lambda: work.free(image)

    with work.streaming(CHECKPOINT) as sink:
        assert sink is None

    assert core.copies[0].is_ended
    core.copies.clear()
    assert reports.freed == [image.id]


def test_memory_that_is_given_back_during_a_read_is_free_after_it(
    work: DeviceWork, core: Core, reports: Reports, image: DeviceImage
) -> None:
    with work.streaming(CHECKPOINT) as sink:
        assert sink is core.copies[0]
        work.free(image)
        assert core.copies[0].is_ended
        core.copies.clear()
        assert reports.freed == []

    del sink
    assert reports.freed == [image.id]


def test_what_an_earlier_read_copied_does_not_count_for_the_next(
    work: DeviceWork, core: Core, image: DeviceImage
) -> None:
    with work.streaming(CHECKPOINT):
        core.copies[0].copied_bytes = FILE_BYTES

    work.expect(image)
    assert core.copies[0].is_ended
    work.copy(image, [])

    assert len(core.copies) == 2


def test_a_device_that_was_opened_stays_open_without_images(work: DeviceWork, core: Core) -> None:
    for image_id, device in enumerate(["GPU-1", "GPU-2", "GPU-1", "GPU-2"]):
        image = DeviceImage(id=image_id, device=device, checkpoint=CHECKPOINT, bytes=2 << 20)
        work.allocate(image)
        work.free(image)

    assert core.opened == ["GPU-1", "GPU-2"]
