"""Plans which pieces of the arena to move so that files find contiguous room. Pure.

Two ways make one hole, and the one that moves fewer bytes is taken: neighbours slide down over the gaps between them
(sliding.py), or what lies in a window moves to free runs elsewhere (relocation.py). O(n log n) for each file, of n
pieces: the store's loop plans, and nobody is served meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .arena_map import ArenaMap, Pieces, extent_bytes, granule_of
from .holes import Hole, Move
from .layout import Piece
from .relocation import cheapest_relocation
from .sliding import cheapest_slide


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """Moves to be done in this order, and the pieces that each file has afterwards."""

    moves: tuple[Move, ...]
    files: tuple[Pieces, ...]


def compact(arena: ArenaMap, file_bytes: Sequence[int], movable: Collection[Piece]) -> Compaction | None:
    """Makes contiguous room for all files by moving some of `movable`; None where that does not succeed.

    On success `arena` is as it is after the moves, with the files' pieces taken.
    """
    trial, free_to_move = arena.copy(), set(movable)
    files: dict[int, Pieces] = {}
    moves: list[Move] = []
    for i in sorted(range(len(file_bytes)), key=lambda i: (-file_bytes[i], i)):
        found = trial.allocate([file_bytes[i]])
        if found is not None:
            files[i] = found[0]
            continue
        hole = _cheapest_hole(trial, file_bytes[i], free_to_move)
        if hole is None:
            return None
        _apply(trial, free_to_move, hole)
        files[i] = (hole.place,)
        moves += hole.moves
    arena.become(trial)
    return Compaction(moves=tuple(moves), files=tuple(files[i] for i in range(len(file_bytes))))


def _cheapest_hole(arena: ArenaMap, file_bytes: int, movable: Collection[Piece]) -> Hole | None:
    length, granule = extent_bytes(file_bytes), granule_of(file_bytes)
    if arena.free_bytes < length:
        return None
    ways = (find(arena, length, granule, movable) for find in (cheapest_slide, cheapest_relocation))
    return min((hole for hole in ways if hole), key=lambda hole: hole.rank, default=None)


def _apply(arena: ArenaMap, movable: set[Piece], hole: Hole) -> None:
    for move in hole.moves:
        before = Piece(offset=move.source, length=move.length)
        after = Piece(offset=move.target, length=move.length)
        arena.free([before])
        arena.claim(after)
        movable.remove(before)
        movable.add(after)
    arena.claim(hole.place)
