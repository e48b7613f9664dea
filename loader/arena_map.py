"""Which runs of the arena are taken: an allocator that keeps a file contiguous for as long as it can.

Large files lie bottom-up at huge-page granules, small ones (LoRA adapters, say) top-down at page granules, so that they
do not fragment each other; each takes the smallest free run that holds it. Where none does, compaction (compaction.py)
moves what may be moved; where even that does not help, a file is scattered over pieces that are multiples of a chunk.
Pure bookkeeping of offsets; one thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from .layout import ALIGNMENT_BYTES, Piece, aligned

SMALL_GRANULE_BYTES = ALIGNMENT_BYTES
LARGE_GRANULE_BYTES = 2 << 20
# Shorter files are small entries.
LARGE_FILE_BYTES = 64 << 20
# Equals the core's CHUNK_BYTES, which a reader does not split (a test compares them).
SCATTER_BYTES = 8 << 20

Pieces = tuple[Piece, ...]
_Take = Callable[[int], Pieces | None]


class ArenaMap:
    """The taken pieces of an arena of `size_bytes`; everything between them is free."""

    def __init__(self, size_bytes: int, taken: Iterable[Piece] = ()) -> None:
        self.bytes = size_bytes
        self._taken: list[Piece] = []
        for piece in taken:
            self.claim(piece)

    def copy(self) -> ArenaMap:
        twin = ArenaMap(self.bytes)
        twin._taken = list(self._taken)
        return twin

    def without(self, pieces: Collection[Piece]) -> ArenaMap:
        """A copy in which these are free."""
        twin = ArenaMap(self.bytes)
        twin._taken = [piece for piece in self._taken if piece not in pieces]
        return twin

    def become(self, other: ArenaMap) -> None:
        """Has the pieces that `other` has, from now on."""
        self._taken = list(other._taken)

    @property
    def taken(self) -> list[Piece]:
        """By offset."""
        return list(self._taken)

    @property
    def used_bytes(self) -> int:
        return sum(piece.length for piece in self._taken)

    @property
    def free_bytes(self) -> int:
        return self.bytes - self.used_bytes

    @property
    def largest_free_bytes(self) -> int:
        return max((run.length for run in self.free_runs()), default=0)

    @property
    def fragmentation(self) -> float:
        """1 - largest free run / free bytes: 0 where all that is free is one run, or nothing is."""
        free_bytes = self.free_bytes
        return 1 - self.largest_free_bytes / free_bytes if free_bytes else 0.0

    def free_runs(self) -> Iterator[Piece]:
        """The gaps, by offset."""
        begin = 0
        for piece in self._taken:
            if piece.offset > begin:
                yield Piece(offset=begin, length=piece.offset - begin)
            begin = piece.end
        if begin < self.bytes:
            yield Piece(offset=begin, length=self.bytes - begin)

    def allocate(self, file_bytes: Sequence[int]) -> list[Pieces] | None:
        """One contiguous piece for each file, or None and nothing is taken."""
        return self._all_or_nothing(file_bytes, self._contiguous)

    def scatter(self, file_bytes: Sequence[int]) -> list[Pieces] | None:
        """As allocate(), but a file that finds no contiguous run gets several pieces.

        All but its last are multiples of SCATTER_BYTES, all lie at huge-page granules.
        """
        return self._all_or_nothing(file_bytes, self._scattered)

    def free(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            at = bisect_left(self._taken, piece)
            assert self._taken[at : at + 1] == [piece], f"{piece} was not taken"
            del self._taken[at]

    def claim(self, piece: Piece) -> None:
        """Takes exactly this piece. Raises ValueError where it is not free."""
        at = bisect_left(self._taken, piece)
        begin = self._taken[at - 1].end if at else 0
        end = self._taken[at].offset if at < len(self._taken) else self.bytes
        if piece.length <= 0 or piece.offset < begin or piece.end > end:
            raise ValueError(f"{piece} is not free in this arena of {self.bytes} bytes")
        self._taken.insert(at, piece)

    def _all_or_nothing(self, file_bytes: Sequence[int], take: _Take) -> list[Pieces] | None:
        # The largest first: it has the fewest places to go.
        order = sorted(range(len(file_bytes)), key=lambda i: (-file_bytes[i], i))
        found: dict[int, Pieces] = {}
        for i in order:
            pieces = take(file_bytes[i])
            if pieces is None:
                self.free(piece for others in found.values() for piece in others)
                return None
            found[i] = pieces
        return [found[i] for i in range(len(file_bytes))]

    def _contiguous(self, file_bytes: int) -> Pieces | None:
        piece = best_fit(self.free_runs(), extent_bytes(file_bytes), granule_of(file_bytes))
        if piece is None:
            return None
        self.claim(piece)
        return (piece,)

    def _scattered(self, file_bytes: int) -> Pieces | None:
        return self._contiguous(file_bytes) or self._gathered(aligned(max(file_bytes, 1), LARGE_GRANULE_BYTES))

    def _gathered(self, missing_bytes: int) -> Pieces | None:
        runs = sorted(filter(None, map(_huge_part, self.free_runs())), key=lambda run: (-run.length, run.offset))
        pieces: list[Piece] = []
        for run in runs:
            length = min(run.length // SCATTER_BYTES * SCATTER_BYTES, missing_bytes)
            if run.length >= missing_bytes:
                length = missing_bytes
            if length:
                pieces.append(Piece(offset=run.offset, length=length))
                missing_bytes -= length
            if not missing_bytes:
                break
        if missing_bytes:
            return None
        for piece in pieces:
            self.claim(piece)
        return tuple(pieces)


def extent_bytes(file_bytes: int) -> int:
    """What a contiguous file takes of the arena."""
    return aligned(max(file_bytes, 1), granule_of(file_bytes))


def granule_of(file_bytes: int) -> int:
    return LARGE_GRANULE_BYTES if file_bytes >= LARGE_FILE_BYTES else SMALL_GRANULE_BYTES


def best_fit(runs: Iterable[Piece], length: int, granule_bytes: int) -> Piece | None:
    """Where in the smallest run that holds it a piece would lie: a large one at the bottom, a small one at the top."""
    is_large = granule_bytes == LARGE_GRANULE_BYTES
    fits = [
        (run.length, piece.offset if is_large else -piece.offset, piece)
        for run in runs
        if run.length >= length and (piece := placed(run, length, granule_bytes)) is not None
    ]
    return min(fits)[2] if fits else None


def placed(run: Piece, length: int, granule_bytes: int) -> Piece | None:
    """Where in this run a piece would lie; None where the run does not hold it."""
    if granule_bytes == LARGE_GRANULE_BYTES:
        offset = aligned(run.offset, granule_bytes)
    else:
        offset = (run.end - length) // granule_bytes * granule_bytes
    fits = run.offset <= offset and offset + length <= run.end
    return Piece(offset=offset, length=length) if fits else None


def _huge_part(run: Piece) -> Piece | None:
    begin, end = aligned(run.offset, LARGE_GRANULE_BYTES), run.end // LARGE_GRANULE_BYTES * LARGE_GRANULE_BYTES
    return Piece(offset=begin, length=end - begin) if begin < end else None
