"""Hashing and verifying a whole checkpoint on disk, without a store and without holding it in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import _core
from .checkpoint import Checkpoint, CheckpointFile
from .chunk_hashes import ChunkHashes, read_hashes, sidecar_path, write_hashes
from .errors import CheckpointChanged, CheckpointCorrupted, ChunkHashesMissing
from .indices import read_indices
from .progress import Progress, watched

READ_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegrityReport:
    """What was hashed or verified: so many files of so many bytes."""

    path: str
    files: int
    bytes: int


def verify_checkpoint(path: Path | str, progress: Progress | None = None) -> IntegrityReport:
    """Checks every header, then reads every byte and compares it with the hashes beside the files.

    Raises CheckpointCorrupted at the first chunk that differs, ChunkHashesMissing where a file has no hashes,
    ChunkHashesInvalid, and every other CheckpointError that opening and reading raise.
    """
    checkpoint = Checkpoint.open(path)
    expected = [_expected(checkpoint, file) for file in checkpoint.files]
    images = _checked_images(checkpoint)

    def verify(job: _core.ReadJob) -> None:
        for image, hashes in zip(images, expected, strict=True):
            _core.verify_chunks(image, hashes.digests, threads=READ_THREADS, job=job)

    watched(verify, checkpoint.total_bytes, progress)
    return _report(checkpoint)


def hash_checkpoint(path: Path | str, progress: Progress | None = None, *, force: bool = False) -> IntegrityReport:
    """Writes the hashes of every file beside it. The checkpoint itself stays as it is.

    It says that the files are right as they are now, so they should come from a place that is trusted. Hashes that are
    there already say what was right before: where a file differs from them, CheckpointCorrupted is raised, or
    ChunkHashesInvalid, and nothing is written; with `force` they are replaced. Raises CheckpointError too,
    CheckpointChanged where a file is written meanwhile, CheckpointUnwritable.
    """
    checkpoint = Checkpoint.open(path)
    before = [None if force else read_hashes(checkpoint, file) for file in checkpoint.files]
    images = _checked_images(checkpoint)

    def take_hashes(job: _core.ReadJob) -> list[ChunkHashes]:
        return [hashes_of(image, job) for image in images]

    all_hashes = watched(take_hashes, checkpoint.total_bytes, progress)
    for image, known, hashes in zip(images, before, all_hashes, strict=True):
        _check_same(image.path, known, hashes)
    for file, hashes in zip(checkpoint.files, all_hashes, strict=True):
        write_hashes(sidecar_path(checkpoint, file), hashes)
    return _report(checkpoint)


def hashes_of(image: _core.FileImage, job: _core.ReadJob) -> ChunkHashes:
    """The hashes of an opened file as it is. Raises CheckpointChanged where it is written meanwhile."""
    digests = _core.hash_chunks(image, threads=READ_THREADS, job=job)
    if not image.is_unchanged():
        raise CheckpointChanged(f"{image.path} changed while it was being hashed; hash it once it is complete")
    return ChunkHashes(file_bytes=image.bytes, digests=tuple(digests))


def _check_same(file: str, known: ChunkHashes | None, found: ChunkHashes) -> None:
    if known is not None and known != found:
        chunk = next(n for n, pair in enumerate(zip(known.digests, found.digests, strict=True)) if len(set(pair)) == 2)
        raise CheckpointCorrupted(
            f"{file}: chunk {chunk} differs from the hash that lies beside the file, so one of them is not as it was; "
            "get the file again, or where it is known to be good have the hashes replaced (--force, force=True)"
        )


def _checked_images(checkpoint: Checkpoint) -> list[_core.FileImage]:
    images = [_core.FileImage(file.real_path) for file in checkpoint.files]
    read_indices(images)
    return images


def _expected(checkpoint: Checkpoint, file: CheckpointFile) -> ChunkHashes:
    hashes = read_hashes(checkpoint, file)
    if hashes is None:
        raise ChunkHashesMissing(
            f"{file.name} of {checkpoint.path} has no hashes to verify it against; where it is known to be good, "
            "`serverless-triton store hash` takes them"
        )
    return hashes


def _report(checkpoint: Checkpoint) -> IntegrityReport:
    return IntegrityReport(path=checkpoint.path, files=len(checkpoint.files), bytes=checkpoint.total_bytes)
