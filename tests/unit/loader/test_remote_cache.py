"""When a copy is published, and who waits for whom: the SSD cache, its writer, and the load before them."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from serverless_triton.loader import _core
from serverless_triton.loader.checkpoint import Checkpoint, CheckpointFile
from serverless_triton.loader.chunk_hashes import CHUNK_BYTES
from serverless_triton.loader.errors import RemoteUrlRefused, StoreCancelled
from serverless_triton.loader.remote import ssd_cache
from serverless_triton.loader.remote.chunks import Chunk, chunks_of
from serverless_triton.loader.remote.journal import ChunkId
from serverless_triton.loader.remote.loader import RemoteLoader
from serverless_triton.loader.remote.partial_entry import PartialEntry
from serverless_triton.loader.remote.settings import RemoteSettings
from serverless_triton.loader.remote.ssd_cache import SsdCache
from serverless_triton.loader.remote.write_behind import WriteBehind

CONTENT = bytes(range(256)) * 4
WAIT_S = 10.0


def checkpoint(url: str = "http://127.0.0.1:1/model.safetensors") -> Checkpoint:
    file = CheckpointFile(name="m", real_path=url, bytes=len(CONTENT), mtime_ns=0, inode=0, etag="1")
    return Checkpoint(path=url, device="remote:", files=(file,))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[SsdCache]:
    cache = SsdCache(tmp_path, 1 << 20)
    yield cache
    cache.close()


@pytest.fixture
def arena() -> _core.Arena:
    return _core.Arena(2 << 20, "4k")


def leave_whole(cache: SsdCache) -> None:
    """As a store does that is killed between the last chunk and publishing the entry."""
    entry = cache.begin(checkpoint())
    with entry:
        entry.write(ChunkId(0, 0), CONTENT, _core.xxh3_128(CONTENT))
        entry.flush()
        cache.abandon(entry)


def load(cache: SsdCache, arena: _core.Arena, job: _core.ReadJob, wanted: Checkpoint) -> None:
    loader = RemoteLoader(RemoteSettings(), cache)
    try:
        loader.load(wanted, [[(0, len(CONTENT))]], arena, job, verify=False)
    finally:
        loader.settle(WAIT_S)


def test_what_nobody_looked_at_in_this_run_is_not_published(cache: SsdCache, arena: _core.Arena):
    leave_whole(cache)
    writer = WriteBehind(cache, cache.begin(checkpoint()), arena)
    writer.close()
    writer.join(WAIT_S)
    assert cache.status.entries == 0
    with cache.begin(checkpoint()) as entry:
        assert len(entry.digests) == 1, "it is kept for a later load"


def test_what_was_confirmed_in_this_run_is_published(cache: SsdCache, arena: _core.Arena):
    leave_whole(cache)
    entry = cache.begin(checkpoint())
    writer = WriteBehind(cache, entry, arena)
    entry.confirm(ChunkId(0, 0))
    writer.close()
    writer.join(WAIT_S)
    assert cache.status.entries == 1


def test_a_chunk_of_another_checkpoint_is_refused(cache: SsdCache, arena: _core.Arena):
    writer = WriteBehind(cache, cache.begin(checkpoint()), arena)
    [own] = chunks_of(checkpoint().files, [[(0, len(CONTENT))]])[0]
    others = (
        replace(own, file=checkpoint("http://127.0.0.1:1/other.safetensors").files[0]),
        replace(own, file=replace(own.file, etag="2")),
        Chunk(file=own.file, id=ChunkId(1, 0), begin=0, end=CHUNK_BYTES, offset=0),
    )
    writer.offer(own, "")
    for other in others:
        with pytest.raises(AssertionError, match="another checkpoint"):
            writer.offer(other, "")
    writer.close()
    writer.join(WAIT_S)


def test_a_load_that_cannot_begin_leaves_nothing_in_use(cache: SsdCache, arena: _core.Arena):
    refused = checkpoint("http://not.this.machine/model.safetensors")
    with pytest.raises(RemoteUrlRefused):
        load(cache, arena, _core.ReadJob(), refused)
    entry = cache.begin(refused)
    assert entry is not None
    with entry:
        cache.abandon(entry)


def test_a_cancelled_load_closes_its_entry_when_nobody_reads_it_any_more(
    cache: SsdCache, arena: _core.Arena, monkeypatch: pytest.MonkeyPatch
):
    leave_whole(cache)
    is_reading, is_closed, events = threading.Event(), threading.Event(), []
    read, close = PartialEntry.read, WriteBehind.close

    def slow_read(entry: PartialEntry, chunk: ChunkId) -> bytes:
        is_reading.set()
        is_closed.wait(0.5)  # which should not come
        events.append("read")
        return read(entry, chunk)

    def noted_close(writer: WriteBehind, problem: str = "") -> None:
        events.append("closed")
        is_closed.set()
        close(writer, problem)

    monkeypatch.setattr(PartialEntry, "read", slow_read)
    monkeypatch.setattr(WriteBehind, "close", noted_close)
    job = _core.ReadJob()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, cache, arena, job, checkpoint())
        assert is_reading.wait(WAIT_S)
        job.cancel()
        with pytest.raises(StoreCancelled):
            loading.result(WAIT_S)
    assert events == ["read", "closed"]


def test_the_status_does_not_wait_for_the_disk(cache: SsdCache, monkeypatch: pytest.MonkeyPatch):
    with ThreadPoolExecutor(1) as pool:
        answered = []
        sync = lambda _: answered.append(pool.submit(lambda: cache.status).result(1.0))  # noqa: E731
        monkeypatch.setattr(ssd_cache, "sync_directory", sync)
        entry = cache.begin(checkpoint())
        with entry:
            entry.write(ChunkId(0, 0), CONTENT, _core.xxh3_128(CONTENT))
            entry.flush()
            cache.complete(entry)
    assert [status.entries for status in answered] == [0, 0]
    assert cache.status.entries == 1


def test_an_entry_that_cannot_be_made_durable_is_not_kept(
    cache: SsdCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arena: _core.Arena
):
    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    leave_whole(cache)
    entry = cache.begin(checkpoint())
    entry.confirm(ChunkId(0, 0))
    writer = WriteBehind(cache, entry, arena)
    monkeypatch.setattr(ssd_cache, "sync_directory", fail)
    writer.close()
    writer.join(WAIT_S)
    assert (cache.status.used_bytes, cache.status.entries) == (0, 0)
    assert not [*(tmp_path / "entries").iterdir(), *(tmp_path / "partial").iterdir()]
