"""Brings one checkpoint from its files into a sealed memory file, verified where hashes lie beside them.

Blocking; used by the store's loader thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from . import _core
from .checkpoint import Checkpoint, CheckpointFile
from .chunk_hashes import ChunkHashes, read_hashes
from .errors import CheckpointChanged
from .indices import read_indices
from .keeper import LoadResult
from .layout import Layout, padded
from .messages import Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """The memory that clients map, and where its bytes came from."""

    memory: _core.MemoryFile
    result: LoadResult


def load_image(
    checkpoint: Checkpoint, layout: Layout, reader: _core.Reader, job: _core.ReadJob, *, verify: bool
) -> LoadedImage:
    """Checks every header first, then reads all files at once, then seals.

    Raises CheckpointError (CheckpointCorrupted and ChunkHashesInvalid only if told to verify), StoreFull where memory
    runs out, StoreCancelled after job.cancel(); nothing is left behind.
    """
    hashes = [read_hashes(checkpoint, file) if verify else None for file in checkpoint.files]
    files = [_open(file) for file in checkpoint.files]
    read_indices(files)
    memory = _core.MemoryFile(layout.bytes)
    pieces = [[(extent.offset, padded(extent.bytes))] for extent in layout.extents]
    report = reader.read(files, memory, pieces, job, _digests(hashes))
    for file in files:
        if not file.is_unchanged():
            raise _changed(file.path)
    memory.seal()
    return LoadedImage(memory=memory, result=_result(report, verified=None not in hashes))


def _digests(hashes: Iterable[ChunkHashes | None]) -> list[tuple[str, ...]]:
    return [known.digests if known else () for known in hashes]


def _open(file: CheckpointFile) -> _core.FileImage:
    image = _core.FileImage(file.real_path)
    if (image.bytes, image.mtime_ns, image.inode) != (file.bytes, file.mtime_ns, file.inode):
        raise _changed(file.real_path)
    return image


def _changed(path: str) -> CheckpointChanged:
    return CheckpointChanged(f"{path} changed while it was being loaded; load it again once it is complete")


def _result(report: _core.ReadReport, *, verified: bool) -> LoadResult:
    tier: Tier = "page_cache" if report.page_cache_bytes > report.disk_bytes else "ssd"
    direct_io = 0 < report.disk_bytes == report.direct_bytes
    return LoadResult(tier=tier, direct_io=direct_io, verified=verified)
