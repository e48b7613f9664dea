"""The core's reader as Python sees it; its own tests are in tests/cpp."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serverless_triton.loader import StoreCancelled
from serverless_triton.loader._core import CHUNK_BYTES, FileImage, Mapping, Reader, ReadJob


@pytest.fixture
def content() -> bytes:
    return b"".join(number.to_bytes(4096, "little") for number in range(1, (2 * CHUNK_BYTES) // 4096 + 3))


@pytest.fixture
def file(tmp_path: Path, content: bytes) -> FileImage:
    (tmp_path / "model.safetensors").write_bytes(content)
    return FileImage(str(tmp_path / "model.safetensors"))


def test_a_file_lands_in_the_pieces_it_is_given(file: FileImage, content: bytes) -> None:
    memory = Mapping.anonymous(3 * CHUNK_BYTES)
    pieces = [(2 * CHUNK_BYTES, CHUNK_BYTES), (0, 2 * CHUNK_BYTES)]

    report = Reader(threads=2).read([file], memory, [pieces], ReadJob())

    seen = bytes(memory)
    assert seen[2 * CHUNK_BYTES :] + seen[: len(content) - CHUNK_BYTES] == content
    assert report.disk_bytes + report.page_cache_bytes == len(content)


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, CHUNK_BYTES)],
        [(0, 4096), (CHUNK_BYTES, 2 * CHUNK_BYTES)],
        [(2048, 3 * CHUNK_BYTES)],
        [(CHUNK_BYTES, 4 * CHUNK_BYTES)],
        [(2**64 - 4096, 8192)],
    ],
)
def test_pieces_that_do_not_fit_are_refused(file: FileImage, pieces: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"piece|too small"):
        Reader(threads=2).read([file], Mapping.anonymous(4 * CHUNK_BYTES), [pieces], ReadJob())


def test_a_paused_job_still_cancels(file: FileImage) -> None:
    job = ReadJob()
    job.pause()
    assert job.is_paused
    job.cancel()

    with pytest.raises(StoreCancelled):
        job.proceed()
    with pytest.raises(StoreCancelled):
        Reader(threads=2).read([file], Mapping.anonymous(3 * CHUNK_BYTES), [[(0, 3 * CHUNK_BYTES)]], job)
    assert job.bytes_done == 0


@pytest.mark.parametrize("engine", ["auto", "pread"])
def test_every_engine_reads_the_same_bytes(file: FileImage, content: bytes, engine: str) -> None:
    memory = Mapping.anonymous(3 * CHUNK_BYTES)
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    reader = Reader(threads=2, engine=engine)

    report = reader.read([file], memory, [[(0, 3 * CHUNK_BYTES)]], ReadJob())

    assert bytes(memory)[: len(content)] == content
    assert reader.engine in ({"pread"} if engine == "pread" else {"io_uring", "pread"})
    assert report.uring_bytes <= report.direct_bytes <= report.disk_bytes


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, io_uring or pread"):
        Reader(threads=1, engine="aio")


FORBIDDEN = """
import ctypes, sys
from serverless_triton.loader import EngineUnavailable
from serverless_triton.loader._core import Reader

class Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32)]

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filters", ctypes.POINTER(Filter))]

# seccomp: io_uring_setup (425) fails with EPERM, as container runtimes have it; everything else is allowed.
filters = (Filter * 4)((0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(Program(4, filters)), 0, 0):
    sys.exit(77)
assert Reader(threads=1).engine == "pread"
try:
    Reader(threads=1, engine="io_uring")
except EngineUnavailable:
    sys.exit(0)
sys.exit(1)
"""


def test_where_io_uring_is_forbidden_auto_is_pread_and_io_uring_is_an_error() -> None:
    status = subprocess.run([sys.executable, "-c", FORBIDDEN], timeout=60, check=False).returncode
    if status == 77:
        pytest.skip("this system lets no process filter its system calls")
    assert status == 0
