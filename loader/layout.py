"""Where each file of a checkpoint lies in its memory image.

An image is the files' bytes as they are on disk, headers included, one contiguous extent a file, each at an aligned
offset so that direct reads land in place. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .checkpoint import CheckpointFile

# Equals the core's ALIGNMENT_BYTES (a test compares them); written here so that this module needs no extension.
ALIGNMENT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """One file in an image: `bytes` from `offset`. `file_name` is its real path, for messages."""

    file_name: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The extents of an image and its whole size in bytes, padding included."""

    extents: tuple[Extent, ...]
    bytes: int


def lay_out(files: Iterable[CheckpointFile]) -> Layout:
    """Places the files one after the other, each at a multiple of ALIGNMENT_BYTES."""
    extents = []
    offset = 0
    for file in files:
        extents.append(Extent(file_name=file.real_path, offset=offset, bytes=file.bytes))
        offset += padded(file.bytes)
    return Layout(extents=tuple(extents), bytes=offset)


def padded(size_bytes: int) -> int:
    """The next multiple of ALIGNMENT_BYTES."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
