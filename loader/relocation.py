"""Finds the cheapest window of the arena whose pieces all find room elsewhere. Pure.

Windows are tried from the fewest bytes to move on, up to a number of pieces that is proportional to all there are, so
that a crowded arena costs O(n log n) for n pieces too: a window that comes after those is not found.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate

from .arena_map import ArenaMap
from .free_runs import FreeRuns
from .holes import Hole, Move, granule_of_piece
from .layout import Piece, aligned

# Of each piece in the arena: many windows of few pieces are tried, or few windows of many.
PIECES_TRIED = 4


def cheapest_relocation(arena: ArenaMap, length: int, granule: int, movable: Collection[Piece]) -> Hole | None:
    """The hole for `length` bytes at `granule` that moving all pieces in it elsewhere makes, if one was found."""
    windows = _Windows(arena, length, granule, movable)
    left_to_try = PIECES_TRIED * len(arena.taken)
    for window in windows.by_cost():
        left_to_try -= window.last - window.first
        if left_to_try < 0:
            return None
        moves = windows.moved_out(window)
        if moves is not None:
            return Hole(moves=moves, place=Piece(offset=window.start, length=length))
    return None


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class _Window:
    """From `start`, and in its way the pieces from `first` up to before `last`."""

    moved_bytes: int
    start: int
    first: int
    last: int


class _Windows:
    def __init__(self, arena: ArenaMap, length: int, granule: int, movable: Collection[Piece]) -> None:
        self._taken, self._arena_bytes = arena.taken, arena.bytes
        self._length, self._granule = length, granule
        self._offsets = [piece.offset for piece in self._taken]
        self._ends = [piece.end for piece in self._taken]
        self._bytes_before = list(accumulate((piece.length for piece in self._taken), initial=0))
        self._fixed_before = list(accumulate((piece not in movable for piece in self._taken), initial=0))
        self._runs = FreeRuns(arena.free_runs())
        self._largest_run_bytes = arena.largest_free_bytes

    def by_cost(self) -> list[_Window]:
        return sorted(self._all())

    def moved_out(self, window: _Window) -> tuple[Move, ...] | None:
        """Where its pieces go, the largest first; None where one of them finds no room."""
        inside = sorted(self._taken[window.first : window.last], key=lambda piece: (-piece.length, piece.offset))
        if inside and inside[0].length > self._largest_run_bytes:
            return None
        outside = self._runs_outside(window)
        moves = []
        for piece in inside:
            target = outside.take(piece.length, granule_of_piece(piece))
            if target is None:
                return None
            moves.append(Move(source=piece.offset, target=target.offset, length=piece.length))
        return tuple(moves)

    def _all(self) -> Iterator[_Window]:
        for start in sorted({aligned(end, self._granule) for end in (0, *self._ends)}):
            first, last = bisect_right(self._ends, start), bisect_left(self._offsets, start + self._length)
            is_movable = self._fixed_before[first] == self._fixed_before[last]
            if is_movable and start + self._length <= self._arena_bytes:
                moved_bytes = self._bytes_before[last] - self._bytes_before[first]
                yield _Window(moved_bytes=moved_bytes, start=start, first=first, last=last)

    def _runs_outside(self, window: _Window) -> FreeRuns:
        runs = self._runs.copy()
        begin, end = window.start, window.start + self._length
        for gap in range(window.first, window.last + 1):
            run = self._run_before(gap)
            if run.length:
                runs.remove(run)
                runs.add(run.offset, min(run.end, begin))
                runs.add(max(run.offset, end), run.end)
        return runs

    def _run_before(self, at: int) -> Piece:
        begin = self._ends[at - 1] if at else 0
        end = self._offsets[at] if at < len(self._taken) else self._arena_bytes
        return Piece(offset=begin, length=end - begin)
