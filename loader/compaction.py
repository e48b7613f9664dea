"""Plans which pieces of the arena to move so that files find contiguous room. Pure.

Two ways make one hole, and the one that moves fewer bytes is taken: neighbours slide down over the gaps between them,
or what lies in a window moves to free runs elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from .arena_map import (
    LARGE_GRANULE_BYTES,
    SMALL_GRANULE_BYTES,
    ArenaMap,
    Pieces,
    best_fit,
    extent_bytes,
    granule_of,
)
from .layout import Piece, aligned


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """`length` bytes go from `source` to `target`; the two may overlap."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """Moves to be done in this order, and the pieces that each file has afterwards."""

    moves: tuple[Move, ...]
    files: tuple[Pieces, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hole:
    moves: tuple[Move, ...]
    place: Piece

    @property
    def cost_bytes(self) -> int:
        return sum(move.length for move in self.moves)


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
    _become(arena, trial)
    return Compaction(moves=tuple(moves), files=tuple(files[i] for i in range(len(file_bytes))))


def _cheapest_hole(arena: ArenaMap, file_bytes: int, movable: Collection[Piece]) -> _Hole | None:
    length, granule = extent_bytes(file_bytes), granule_of(file_bytes)
    if arena.free_bytes < length:
        return None
    holes = [*_slides(arena, length, granule, movable), *_relocations(arena, length, granule, movable)]
    return min(holes, key=lambda hole: (hole.cost_bytes, hole.place), default=None)


def _slides(arena: ArenaMap, length: int, granule: int, movable: Collection[Piece]) -> Iterator[_Hole]:
    """For each first neighbour the shortest row that opens a hole large enough behind it."""
    taken = arena.taken
    cheapest_bytes = arena.bytes
    for first in range(len(taken)):
        cursor = taken[first - 1].end if first else 0
        moves: list[Move] = []
        moved_bytes = 0
        for at in range(first, len(taken)):
            piece = taken[at]
            if piece not in movable or moved_bytes > cheapest_bytes:
                break
            target = aligned(cursor, _granule_of_piece(piece))
            cursor = target + piece.length
            if target != piece.offset:
                moves.append(Move(source=piece.offset, target=target, length=piece.length))
                moved_bytes += piece.length
            begin = aligned(cursor, granule)
            end = taken[at + 1].offset if at + 1 < len(taken) else arena.bytes
            if begin + length <= end:
                cheapest_bytes = moved_bytes
                yield _Hole(moves=tuple(moves), place=Piece(offset=begin, length=length))
                break


def _relocations(arena: ArenaMap, length: int, granule: int, movable: Collection[Piece]) -> Iterator[_Hole]:
    """The cheapest window whose pieces all find room outside of it."""
    taken = arena.taken
    starts = {aligned(end, granule) for end in (0, *(piece.end for piece in taken))}
    windows = []
    for start in sorted(starts):
        inside = [piece for piece in taken if piece.offset < start + length and piece.end > start]
        if start + length <= arena.bytes and all(piece in movable for piece in inside):
            windows.append((sum(piece.length for piece in inside), start, inside))
    for _, start, inside in sorted(windows, key=lambda window: window[:2]):
        place = Piece(offset=start, length=length)
        moves = _moved_out(arena, place, inside)
        if moves is not None:
            yield _Hole(moves=moves, place=place)
            return


def _moved_out(arena: ArenaMap, window: Piece, inside: Iterable[Piece]) -> tuple[Move, ...] | None:
    outside = arena.copy()
    for run in list(outside.free_runs()):
        begin, end = max(run.offset, window.offset), min(run.end, window.end)
        if begin < end:
            outside.claim(Piece(offset=begin, length=end - begin))
    moves = []
    for piece in sorted(inside, key=lambda piece: (-piece.length, piece.offset)):
        target = best_fit(outside.free_runs(), piece.length, _granule_of_piece(piece))
        if target is None:
            return None
        outside.claim(target)
        moves.append(Move(source=piece.offset, target=target.offset, length=piece.length))
    return tuple(moves)


def _granule_of_piece(piece: Piece) -> int:
    """The coarser granule where the piece keeps to it: what lies at huge pages stays at huge pages."""
    is_huge = piece.offset % LARGE_GRANULE_BYTES == 0 == piece.length % LARGE_GRANULE_BYTES
    return LARGE_GRANULE_BYTES if is_huge else SMALL_GRANULE_BYTES


def _apply(arena: ArenaMap, movable: set[Piece], hole: _Hole) -> None:
    for move in hole.moves:
        before = Piece(offset=move.source, length=move.length)
        after = Piece(offset=move.target, length=move.length)
        arena.free([before])
        arena.claim(after)
        movable.remove(before)
        movable.add(after)
    arena.claim(hole.place)


def _become(arena: ArenaMap, other: ArenaMap) -> None:
    arena.free(arena.taken)
    for piece in other.taken:
        arena.claim(piece)
