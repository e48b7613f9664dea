"""Brings checkpoints from their files into the arena, verified where hashes lie beside them.

Blocking; used by the store's loading threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import _core
from .checkpoint import Checkpoint, CheckpointFile
from .chunk_hashes import ChunkHashes, read_hashes
from .effects import LoadResult
from .errors import CheckpointChanged
from .indices import read_indices
from .layout import Extent
from .receipts import Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLoader:
    """Fills places in the arena, verifying where hashes lie beside the files and it was told to."""

    arena: _core.Arena
    reader: _core.Reader
    verify: bool

    def load(
        self,
        checkpoint: Checkpoint,
        extents: Sequence[Extent],
        job: _core.ReadJob,
        sink: _core.ChunkSink | None = None,
    ) -> LoadResult:
        """Checks every header first, then reads all files at once; `sink` hears of every chunk.

        Raises CheckpointError (CheckpointCorrupted and ChunkHashesInvalid only if told to verify), StoreFull where
        memory runs out, StoreCancelled after job.cancel(). Nothing is written to the extents after it returned.
        """
        hashes = [read_hashes(checkpoint, file) if self.verify else None for file in checkpoint.files]
        files = [_open(file) for file in checkpoint.files]
        read_indices(files)
        pieces = [[(piece.offset, piece.length) for piece in extent.pieces] for extent in extents]
        report = self.reader.read(files, self.arena, pieces, job, _digests(hashes), sink=sink)
        for file in files:
            if not file.is_unchanged():
                raise _changed(file.path)
        return _result(report, verified=None not in hashes)


def _digests(hashes: Iterable[ChunkHashes | None]) -> list[tuple[str, ...]]:
    return [known.digests if known else () for known in hashes]


def _open(file: CheckpointFile) -> _core.FileImage:
    image = _core.FileImage(file.local_path)
    is_same_file = file.cached_path or (image.mtime_ns, image.inode) == (file.mtime_ns, file.inode)
    if image.bytes != file.bytes or not is_same_file:
        raise _changed(file.local_path)
    return image


def _changed(path: str) -> CheckpointChanged:
    return CheckpointChanged(f"{path} changed while it was being loaded; load it again once it is complete")


def _result(report: _core.ReadReport, *, verified: bool) -> LoadResult:
    tier: Tier = "page_cache" if report.page_cache_bytes > report.disk_bytes else "ssd"
    share = max(report.page_cache_bytes, report.disk_bytes) / max(1, report.page_cache_bytes + report.disk_bytes)
    direct_io = 0 < report.disk_bytes == report.direct_bytes
    return LoadResult(tier=tier, direct_io=direct_io, verified=verified, tier_share=share)
