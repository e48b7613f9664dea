"""How much of a file is asked for before its header was checked."""

import asyncio
import mmap

import pytest

from serverless_triton.loader import _core
from serverless_triton.loader.checkpoint import CheckpointFile
from serverless_triton.loader.chunk_hashes import CHUNK_BYTES
from serverless_triton.loader.errors import CheckpointTruncated, NotSafetensors
from serverless_triton.loader.remote.chunks import Chunk, chunks_of
from serverless_triton.loader.remote.patience import Patience
from serverless_triton.loader.remote.transfer import Transfer
from serverless_triton.loader.safetensors_writer import MAX_HEADER_BYTES

LARGE_BYTES = 14 * CHUNK_BYTES  # longer than the longest header
SMALL_BYTES = 2 * CHUNK_BYTES + 5


class RecordedSource:
    """Has every chunk at once: the memory is what it is."""

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def may_restore(self, _chunk: Chunk) -> bool:
        return False

    async def fetch(self, chunk: Chunk) -> str:
        self.fetched.append(chunk.id.number)
        return ""


@pytest.mark.parametrize(
    ("file_bytes", "header_bytes", "fetched", "error"),
    [
        (LARGE_BYTES, MAX_HEADER_BYTES, 12, NotSafetensors),  # all of it, which is no JSON
        (LARGE_BYTES, MAX_HEADER_BYTES + 1, 1, NotSafetensors),
        (SMALL_BYTES, SMALL_BYTES - 8 - 1, 3, NotSafetensors),
        (SMALL_BYTES, SMALL_BYTES - 8, 3, NotSafetensors),
        (SMALL_BYTES, SMALL_BYTES - 8 + 1, 1, CheckpointTruncated),
    ],
)
def test_a_header_that_cannot_be_is_refused_with_the_first_chunk(
    file_bytes: int, header_bytes: int, fetched: int, error: type[Exception]
):
    memory = mmap.mmap(-1, file_bytes)
    memory[:8] = header_bytes.to_bytes(8, "little")
    file = CheckpointFile(name="a", real_path="s3://b/a", bytes=file_bytes, mtime_ns=0, inode=0, etag="e")
    source = RecordedSource()
    transfer = Transfer(
        files=[file],
        chunks=chunks_of([file], [[(0, file_bytes)]]),
        source=source,
        writer=None,
        arena=memory,
        job=_core.ReadJob(),
        patience=Patience(10),
        concurrency=2,
    )
    with pytest.raises(error):
        asyncio.run(transfer.run())
    assert source.fetched == list(range(fetched))
