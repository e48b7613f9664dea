"""The free runs of an arena by length, for questions in a row: which is the smallest that holds a piece? Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from math import inf

from .arena_map import LARGE_GRANULE_BYTES, placed
from .layout import Piece


class FreeRuns:
    """Free runs that do not overlap. take() answers as best_fit() of arena_map.py does."""

    def __init__(self, runs: Iterable[Piece] = ()) -> None:
        self._runs = sorted((run.length, run.offset) for run in runs)

    def copy(self) -> FreeRuns:
        twin = FreeRuns()
        twin._runs = list(self._runs)
        return twin

    def add(self, begin: int, end: int) -> None:
        """Nothing where the run is empty."""
        if begin < end:
            insort(self._runs, (end - begin, begin))

    def remove(self, run: Piece) -> None:
        at = bisect_left(self._runs, (run.length, run.offset))
        assert self._runs[at : at + 1] == [(run.length, run.offset)], f"{run} was no free run"
        del self._runs[at]

    def take(self, length: int, granule_bytes: int) -> Piece | None:
        """Takes the best place for a piece; None, and nothing is taken, where no run holds it."""
        at = bisect_left(self._runs, (length, 0))
        while at < len(self._runs):
            run_bytes, offset = self._runs[at]
            if granule_bytes != LARGE_GRANULE_BYTES:
                # Of runs of one length, a small piece lies in the last.
                at = bisect_right(self._runs, (run_bytes, inf)) - 1
                run_bytes, offset = self._runs[at]
            piece = placed(Piece(offset=offset, length=run_bytes), length, granule_bytes)
            if piece is not None:
                del self._runs[at]
                self.add(offset, piece.offset)
                self.add(piece.end, offset + run_bytes)
                return piece
            at += 1
        return None
