"""The chunks of a checkpoint's files, and where in the arena each goes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..checkpoint import CheckpointFile
from ..chunk_hashes import CHUNK_BYTES
from .journal import ChunkId

# Per file its pieces of the arena in the file's order, as (offset, length); each but the last is a multiple of a chunk.
Pieces = Sequence[Sequence[tuple[int, int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Bytes `begin` to `end` of a file, which go to `offset` of the arena."""

    file: CheckpointFile
    id: ChunkId
    begin: int
    end: int
    offset: int

    @property
    def bytes(self) -> int:
        return self.end - self.begin


def chunks_of(files: Sequence[CheckpointFile], pieces: Pieces) -> list[list[Chunk]]:
    """Every chunk of every file, in order."""
    return [
        list(_chunks_of_file(number, file, file_pieces))
        for number, (file, file_pieces) in enumerate(zip(files, pieces, strict=True))
    ]


def _chunks_of_file(number: int, file: CheckpointFile, pieces: Sequence[tuple[int, int]]) -> Iterator[Chunk]:
    begin = 0
    for offset, length in pieces:
        piece_end = min(begin + length, file.bytes)
        assert begin % CHUNK_BYTES == 0
        while begin < piece_end:
            end = min(begin + CHUNK_BYTES, piece_end)
            yield Chunk(file=file, id=ChunkId(number, begin // CHUNK_BYTES), begin=begin, end=end, offset=offset)
            offset, begin = offset + end - begin, end
    assert begin == file.bytes
