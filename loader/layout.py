"""Where each file of a checkpoint lies in the arena: the file's bytes as they are on disk, header included.

A file has one piece, or several where the arena had no contiguous room left. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

# Equals the core's ALIGNMENT_BYTES (a test compares them); written here so that this module needs no extension.
ALIGNMENT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Piece:
    """A run of `length` bytes from `offset` of the arena; both are multiples of ALIGNMENT_BYTES."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """One file in the arena: its first `bytes` over its pieces in order. `file_name` is its real path, for messages.

    What lies between the file's end and its last piece's is undefined.
    """

    file_name: str
    bytes: int
    pieces: tuple[Piece, ...]


def aligned(size_bytes: int, granule_bytes: int = ALIGNMENT_BYTES) -> int:
    """The next multiple of the granule."""
    return -(-size_bytes // granule_bytes) * granule_bytes
