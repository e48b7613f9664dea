"""The core's reader as Python sees it; its own tests are in tests/cpp."""

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
