"""Finds the cheapest row of neighbours that open a hole behind them when each slides down to the one before it. Pure.

A row begins at any piece, and ends where its gaps, less what alignment loses, add up to the hole. Where a row's last
piece comes to end is known without walking the row: behind any huge-page piece all rows advance alike, and so they do
before the first one, where nothing is aligned. So one walk over all pieces tells where each row's pieces end, but for a
constant of the row. O(n log n) for n pieces.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from math import inf

from .arena_map import LARGE_GRANULE_BYTES, ArenaMap
from .holes import Hole, Move, granule_of_piece
from .layout import Piece, aligned


def cheapest_slide(arena: ArenaMap, length: int, granule: int, movable: Collection[Piece]) -> Hole | None:
    """The hole for `length` bytes at `granule` that sliding movable neighbours opens for the fewest bytes moved."""
    rows = _Rows(arena, length, granule, movable)
    return rows.hole(*best) if (best := rows.cheapest()) else None


class _Rows:
    def __init__(self, arena: ArenaMap, length: int, granule: int, movable: Collection[Piece]) -> None:
        self._taken, self._length, self._granule = arena.taken, length, granule
        self._granules = [granule_of_piece(piece) for piece in self._taken]
        self._moved_bytes = list(accumulate((piece.length for piece in self._taken), initial=0))
        self._ends = self._ends_of_one_row()
        self._next_huge = self._next_huge_pieces()
        limits = [piece.offset for piece in self._taken[1:]] + [arena.bytes]
        # How much further than in the one row a piece may end with room for the hole behind it; a row ends at the
        # first piece that may not move.
        self._slack = _FirstAtLeast(
            [
                (limit - length) // granule * granule - end if piece in movable else inf
                for piece, limit, end in zip(self._taken, limits, self._ends, strict=True)
            ]
        )
        self._is_movable = [piece in movable for piece in self._taken]

    def cheapest(self) -> tuple[int, int] | None:
        """First and last piece of the row with the lowest rank."""
        best: tuple[int, int, int, int] | None = None
        for first in range(len(self._taken)):
            last = self._last_of_row(first)
            if last is None:
                continue
            moved_bytes = self._moved_bytes[last + 1] - self._moved_bytes[first]
            rank = (moved_bytes, self._taken[last].end, first, last)
            best = min(best, rank) if best else rank
        return best[2:] if best else None

    def hole(self, first: int, last: int) -> Hole:
        cursor = self._floor(first)
        moves = []
        for piece, granule in zip(self._taken[first : last + 1], self._granules[first : last + 1], strict=True):
            target = aligned(cursor, granule)
            cursor = target + piece.length
            if target != piece.offset:
                moves.append(Move(source=piece.offset, target=target, length=piece.length))
        place = Piece(offset=aligned(cursor, self._granule), length=self._length)
        return Hole(moves=tuple(moves), place=place)

    def _last_of_row(self, first: int) -> int | None:
        """The first piece, from `first` on, behind which the hole opens."""
        floor, huge = self._floor(first), self._next_huge[first]
        if first < huge:
            last = self._slack.find(first, floor - (self._ends[first] - self._taken[first].length))
            if last is not None and last < huge:
                return self._unless_fixed(last)
            floor += self._moved_bytes[huge] - self._moved_bytes[first]
        if huge == len(self._taken):
            return None
        end = aligned(floor, self._granules[huge]) + self._taken[huge].length
        return self._unless_fixed(self._slack.find(huge, end - self._ends[huge]))

    def _unless_fixed(self, last: int | None) -> int | None:
        return last if last is not None and self._is_movable[last] else None

    def _floor(self, first: int) -> int:
        return self._taken[first - 1].end if first else 0

    def _ends_of_one_row(self) -> list[int]:
        """Where each piece would end if all slid down."""
        ends, cursor = [], 0
        for piece, granule in zip(self._taken, self._granules, strict=True):
            cursor = aligned(cursor, granule) + piece.length
            ends.append(cursor)
        return ends

    def _next_huge_pieces(self) -> list[int]:
        """For each piece the first at huge pages from there on; the number of pieces where there is none."""
        found, following = [], len(self._taken)
        for at in reversed(range(len(self._taken))):
            following = at if self._granules[at] == LARGE_GRANULE_BYTES else following
            found.append(following)
        return found[::-1]


class _FirstAtLeast:
    """Answers where in a row of numbers the first one lies that reaches a limit: a tree of maxima."""

    def __init__(self, values: Sequence[float]) -> None:
        self._leaves = 1 << max(len(values) - 1, 0).bit_length()
        padding = [-inf] * (self._leaves - len(values))
        self._tree = [-inf] * self._leaves + list(values) + padding
        for node in reversed(range(1, self._leaves)):
            self._tree[node] = max(self._tree[2 * node], self._tree[2 * node + 1])

    def find(self, begin: int, limit: float) -> int | None:
        """The first index from `begin` on whose value is at least `limit`."""
        node = self._leaves + begin
        while self._tree[node] < limit:
            # On to the largest subtree that begins right behind this one.
            node += 1
            while node % 2 == 0:
                node //= 2
            if node == 1:
                return None
        while node < self._leaves:
            node = 2 * node + (self._tree[2 * node] < limit)
        return node - self._leaves
