"""A hole that moving pieces would open in the arena, and the moves for it. Pure values."""

from __future__ import annotations

from dataclasses import dataclass

from .arena_map import LARGE_GRANULE_BYTES, SMALL_GRANULE_BYTES
from .layout import Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """`length` bytes go from `source` to `target`; the two may overlap."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """`place` is free after these moves, done in this order."""

    moves: tuple[Move, ...]
    place: Piece

    @property
    def rank(self) -> tuple[int, Piece]:
        """The lowest is the best: of the fewest bytes to move, then the first place."""
        return sum(move.length for move in self.moves), self.place


def granule_of_piece(piece: Piece) -> int:
    """The coarser granule where the piece keeps to it: what lies at huge pages stays at huge pages."""
    is_huge = piece.offset % LARGE_GRANULE_BYTES == 0 == piece.length % LARGE_GRANULE_BYTES
    return LARGE_GRANULE_BYTES if is_huge else SMALL_GRANULE_BYTES
