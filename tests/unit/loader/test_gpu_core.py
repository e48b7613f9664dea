"""The core's GPU classes as Python sees them: memory that other processes import, copies as chunks arrive, tensors."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from serverless_triton.loader import _core, errors

pytestmark = pytest.mark.usefixtures("cuda_driver")

CHUNKS = 3 * _core.CHUNK_BYTES + 12_345

IMPORTER = """
import sys
from serverless_triton.loader import _core
memory = _core.DeviceMemory.from_fd(_core.GpuDevice(0), int(sys.argv[1]), int(sys.argv[2]))
sys.stdout.buffer.write(memory.read(0, int(sys.argv[3])))
"""


@pytest.fixture
def device() -> _core.GpuDevice:
    return _core.GpuDevice(0)


def random_file(path: Path, size_bytes: int) -> bytes:
    content = os.urandom(size_bytes)
    path.write_bytes(content)
    return content


def test_a_read_copies_its_chunks_on_to_the_device(device: _core.GpuDevice, tmp_path: Path) -> None:
    files = ["a", "b"]
    content = [random_file(tmp_path / name, CHUNKS) for name in files]
    padded = -(-CHUNKS // 4096) * 4096
    memory = _core.Mapping.anonymous(2 * padded)
    target = _core.DeviceMemory.allocate(device, 2 * padded)
    copy = _core.GpuCopy(target, [0, padded], _core.RegisteredMemory(memory))

    images = [_core.FileImage(str(tmp_path / name)) for name in files]
    pieces = [[(0, padded)], [(padded, padded)]]
    _core.Reader(threads=4).read(images, memory, pieces, _core.ReadJob(), sink=copy)
    copy.finish()

    assert copy.copied_bytes == 2 * CHUNKS
    assert target.read(0, CHUNKS) == content[0]
    assert target.read(padded, CHUNKS) == content[1]


def test_another_process_sees_the_memory_behind_a_descriptor(device: _core.GpuDevice, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    memory = _device_copy(device, content)
    fd, size_bytes = memory.export_fd(), memory.bytes
    del memory

    arguments = [str(fd), str(size_bytes), str(len(content))]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTER, *arguments], pass_fds=[fd], capture_output=True, check=False, timeout=60
    )
    os.close(fd)

    assert done.returncode == 0, done.stderr
    assert done.stdout == content


def test_a_tensor_over_the_memory_keeps_it(device: _core.GpuDevice) -> None:
    content = os.urandom(8192)
    memory = _device_copy(device, content)
    gone = weakref.ref(memory)

    view = torch.from_dlpack(memory.dlpack())[4096:8192].view(torch.int32)
    del memory
    gc.collect()

    assert gone() is not None
    assert bytes(view.cpu().view(torch.uint8).numpy()) == content[4096:]
    del view
    gc.collect()
    assert gone() is None


def test_a_tensor_that_nobody_took_does_not_keep_the_memory(device: _core.GpuDevice) -> None:
    memory = _core.DeviceMemory.allocate(device, 4096)
    gone = weakref.ref(memory)

    memory.dlpack()
    del memory
    gc.collect()

    assert gone() is None


def test_failures_have_types_and_the_drivers_words(device: _core.GpuDevice) -> None:
    with pytest.raises(errors.DeviceOutOfMemory, match="CUDA_ERROR_OUT_OF_MEMORY"):
        _core.DeviceMemory.allocate(device, 2 * device.total_bytes)
    with pytest.raises(errors.DeviceUnavailable, match="cuda:4096"):
        _core.GpuDevice(4096)


def test_a_cancelled_copy_says_so(device: _core.GpuDevice) -> None:
    memory = _core.Mapping.anonymous(4096)
    copy = _core.GpuCopy(_core.DeviceMemory.allocate(device, 4096), [0])

    copy.cancel()

    copy.copy(0, memory, [(0, 4096)], _core.ReadJob())

    assert copy.copied_bytes == 0
    with pytest.raises(errors.StoreCancelled):
        copy.finish()


def _device_copy(device: _core.GpuDevice, content: bytes) -> _core.DeviceMemory:
    memory = _core.Mapping.anonymous(len(content))
    memoryview(memory)[:] = content
    target = _core.DeviceMemory.allocate(device, len(content))
    copy = _core.GpuCopy(target, [0])
    copy.copy(0, memory, [(0, len(content))], _core.ReadJob())
    copy.finish()
    return target
