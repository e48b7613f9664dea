"""Rewrites a checkpoint for loading: aligned data, tensors in layer order, hashes beside every file.

The result is plain safetensors, which every reader opens. It appears under its name whole or not at all.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import _core
from .checkpoint import PICKLE_SUFFIXES, Checkpoint, CheckpointFile
from .chunk_hashes import SUFFIX, read_hashes, write_hashes
from .errors import CheckpointChanged, CheckpointExists, CheckpointUnwritable
from .indices import read_indices
from .integrity import READ_THREADS, hashes_of
from .progress import Progress, watched
from .safetensors_writer import write_in_layer_order

# What lies beside a checkpoint and is not copied: weights in other formats, and hashes of the files as they were.
OTHER_SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors", SUFFIX, ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepackReport:
    """What was written: so many safetensors files of so many bytes, and other files that were copied as they are."""

    path: str
    files: int
    bytes: int
    copied: tuple[str, ...]


def repack_checkpoint(source: Path | str, target: Path | str, progress: Progress | None = None) -> RepackReport:
    """Writes the checkpoint at `source` into a new directory `target`, with what lies beside it (config, tokenizer).

    Where the source has hashes it is verified first. Raises CheckpointExists, CheckpointUnwritable and every
    CheckpointError of the source; then there is no `target`. What a killed repack left is cleared by the next one.
    """
    checkpoint = Checkpoint.open(source)
    images = [_core.FileImage(file.real_path) for file in checkpoint.files]
    read_indices(images)
    place = Path(target).absolute()
    with _new_directory(place) as partial:
        watched(lambda job: _fill(checkpoint, images, partial, job), 3 * checkpoint.total_bytes, progress)
        copied = _copy_companions(checkpoint, partial)
    files = [place / file.name for file in checkpoint.files]
    return RepackReport(
        path=str(place), files=len(files), bytes=sum(file.stat().st_size for file in files), copied=copied
    )


def _fill(checkpoint: Checkpoint, images: list[_core.FileImage], partial: Path, job: _core.ReadJob) -> None:
    for file, image in zip(checkpoint.files, images, strict=True):
        _verify(checkpoint, file, image, job)
        written = partial / file.name
        with _as_unwritable(written):
            write_in_layer_order(image, written, job)
        if not image.is_unchanged():
            raise CheckpointChanged(f"{image.path} changed while it was repacked; repack it once it is complete")
        copy = _core.FileImage(str(written))
        read_indices([copy])
        write_hashes(partial / f"{file.name}{SUFFIX}", hashes_of(copy, job))


def _verify(checkpoint: Checkpoint, file: CheckpointFile, image: _core.FileImage, job: _core.ReadJob) -> None:
    hashes = read_hashes(checkpoint, file)
    if hashes is None:
        job.add_done(file.bytes)
    else:
        _core.verify_chunks(image, hashes.digests, threads=READ_THREADS, job=job)


def _copy_companions(checkpoint: Checkpoint, partial: Path) -> tuple[str, ...]:
    directory = Path(checkpoint.path)
    if not directory.is_dir():
        return ()
    companions = sorted(
        entry for entry in directory.iterdir() if entry.is_file() and not entry.name.endswith(OTHER_SUFFIXES)
    )
    with _as_unwritable(partial):
        for companion in companions:
            shutil.copyfile(companion, partial / companion.name)
            _sync(partial / companion.name)
    return tuple(companion.name for companion in companions)


@contextmanager
def _new_directory(target: Path) -> Iterator[Path]:
    """A directory to fill, which becomes `target` at the end of the block and goes where the block fails."""
    if os.path.lexists(target):
        raise CheckpointExists(f"{target} already exists; remove it first or choose another place")
    if not target.parent.is_dir():
        raise CheckpointUnwritable(f"there is no directory {target.parent}; create it, or choose another place")
    partial = target.with_name(f".{target.name}.partial")
    with _as_unwritable(target), _locked(partial):
        try:
            yield partial
            _sync(partial)
            partial.rename(target)
            _sync(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """`partial` empty and ours alone: the lock ends with the process, so what a killed one left is nobody's."""
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _take(descriptor, partial):
            raise CheckpointExists(f"another repack is writing {partial}; wait for it")
        for entry in partial.iterdir():
            entry.unlink()
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, partial: Path) -> bool:
    """Whether the lock is ours, on the directory that still has that name."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), partial.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def _as_unwritable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointUnwritable(
            f"cannot write {path}: {error.strerror or error}; check its permissions and the free space"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
