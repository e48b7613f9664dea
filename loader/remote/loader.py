"""Loads a remote checkpoint into the arena, verified where hashes lie beside its files, and caches it on the way.

Blocking; several loads may run at once, each on a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .. import _core
from ..checkpoint import Checkpoint, CheckpointFile
from ..chunk_hashes import CHUNK_BYTES, MAX_SIDECAR_BYTES, SUFFIX, parse_hashes_of
from ..effects import LoadResult
from ..errors import CheckpointChanged, CheckpointNotFound, RemoteDenied
from ..receipts import Tier
from .cancellation import run_until_cancelled
from .chunk_source import ArenaMemory, ChunkSource
from .chunks import Pieces, chunks_of
from .journal import ChunkId
from .objects import ObjectOpener, Version
from .patience import Patience, asked_patiently
from .settings import RemoteSettings
from .ssd_cache import SsdCache
from .throttle import Throttle
from .transfer import Transfer, TransferReport
from .write_behind import WriteBehind

log = logging.getLogger("serverless_triton.store")

# So slow may one chunk come, of the time that a request has, before fewer are asked for at once.
SHARE_OF_REQUEST_TIME = 0.25


class RemoteLoader:
    """`cache` is None where there is no SSD cache."""

    def __init__(self, settings: RemoteSettings, cache: SsdCache | None) -> None:
        self._settings = settings
        self._cache = cache
        self._objects = ObjectOpener(settings)
        self._throttle = Throttle(settings.bytes_per_second)
        self._writers: list[WriteBehind] = []
        self._writers_lock = threading.Lock()

    def load(
        self,
        checkpoint: Checkpoint,
        pieces: Pieces,
        arena: ArenaMemory,
        job: _core.ReadJob,
        *,
        verify: bool,
        sink: _core.ChunkSink | None = None,
    ) -> LoadResult:
        """Fills the pieces with exactly the version that `checkpoint` names; `sink` hears of every chunk.

        Raises CheckpointError (CheckpointChanged for another version, CheckpointCorrupted and ChunkHashesInvalid only
        if told to verify), RemoteUnavailable, StoreCancelled after job.cancel().
        """
        patience = Patience(self._settings.patience_s)
        expected: Sequence[Sequence[str] | None] = [None] * len(checkpoint.files)
        if verify:
            expected = run_until_cancelled(self._hashes(checkpoint.files, patience), job)
        with self._writer(checkpoint, arena) as writer:
            source = ChunkSource(
                objects=[(self._objects.object_at(file.real_path), _version(file)) for file in checkpoint.files],
                arena=arena,
                expected=_by_chunk(expected),
                entry=writer.entry if writer else None,
                throttle=self._throttle,
                patience=patience,
            )
            transfer = Transfer(
                files=checkpoint.files,
                chunks=chunks_of(checkpoint.files, pieces),
                source=source,
                writer=writer,
                sink=sink,
                arena=arena,
                job=job,
                patience=patience,
                concurrency=self._concurrency,
            )
            report = run_until_cancelled(transfer.run(), job)
        return _result(report, verified=None not in expected)

    def settle(self, timeout_s: float) -> None:
        """Waits until what the loads until now left to write is in the SSD cache, or until that time has passed."""
        deadline_s = time.monotonic() + timeout_s
        with self._writers_lock:
            writers = list(self._writers)
        for writer in writers:
            writer.join(max(0.0, deadline_s - time.monotonic()))

    @contextmanager
    def _writer(self, checkpoint: Checkpoint, arena: ArenaMemory) -> Iterator[WriteBehind | None]:
        """What caches one load's chunks, closed when that is over; None where nothing is to be cached."""
        entry = self._cache.begin(checkpoint) if self._cache else None
        if self._cache is None or entry is None:
            yield None
            return
        try:
            writer = WriteBehind(self._cache, entry, arena)
        except BaseException:
            with entry:
                self._cache.abandon(entry)
            raise
        problem = ""
        try:
            with self._writers_lock:
                self._writers = [*(other for other in self._writers if other.is_writing), writer]
            yield writer
        except CheckpointChanged:
            problem = "it changed meanwhile"
            raise
        finally:
            writer.close(problem)

    @property
    def _concurrency(self) -> int:
        limit = self._settings.bytes_per_second
        if not limit:
            return self._settings.concurrency
        in_time = int(limit * self._settings.request_timeout_s * SHARE_OF_REQUEST_TIME / CHUNK_BYTES)
        return max(1, min(self._settings.concurrency, in_time))

    async def _hashes(self, files: Sequence[CheckpointFile], patience: Patience) -> Sequence[Sequence[str] | None]:
        return await asyncio.gather(*(self._hashes_of(file, patience) for file in files))

    async def _hashes_of(self, file: CheckpointFile, patience: Patience) -> Sequence[str] | None:
        sidecar = self._objects.object_at(f"{file.real_path}{SUFFIX}")
        try:
            content = await asked_patiently(lambda: sidecar.read_whole(MAX_SIDECAR_BYTES), sidecar.url, patience)
        except CheckpointNotFound:
            return None
        except RemoteDenied:  # a bucket that may not be listed denies what is not there, so this is no failure
            log.warning(
                "loading unverified url=%s: its hashes %s may not be read, or do not exist; allow the store to read "
                "them, or to list the bucket",
                file.real_path,
                sidecar.url,
            )
            return None
        return parse_hashes_of(file, content, sidecar.url).digests


def _version(file: CheckpointFile) -> Version:
    return Version(bytes=file.bytes, etag=file.etag)


def _by_chunk(digests: Sequence[Sequence[str] | None]) -> dict[ChunkId, str]:
    return {
        ChunkId(number, index): digest
        for number, of_file in enumerate(digests)
        for index, digest in enumerate(of_file or ())
    }


def _result(report: TransferReport, *, verified: bool) -> LoadResult:
    tier: Tier = "remote" if report.fetched_bytes >= report.restored_bytes else "ssd"
    share = max(report.fetched_bytes, report.restored_bytes) / max(1, report.fetched_bytes + report.restored_bytes)
    return LoadResult(tier=tier, direct_io=False, verified=verified, tier_share=share)
