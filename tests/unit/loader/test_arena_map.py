"""The arena's allocator and its compaction: never overlapping, nothing lost, moves that keep every byte."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serverless_triton.loader import _core
from serverless_triton.loader.arena_map import (
    LARGE_FILE_BYTES,
    LARGE_GRANULE_BYTES,
    SCATTER_BYTES,
    ArenaMap,
    best_fit,
    extent_bytes,
)
from serverless_triton.loader.compaction import Compaction, compact
from serverless_triton.loader.free_runs import FreeRuns
from serverless_triton.loader.holes import granule_of_piece
from serverless_triton.loader.layout import ALIGNMENT_BYTES, Piece, aligned
from serverless_triton.loader.sliding import cheapest_slide

MEGABYTES = 1 << 20


def piece(offset_megabytes: int, megabytes: int) -> Piece:
    return Piece(offset=offset_megabytes * MEGABYTES, length=megabytes * MEGABYTES)


def allocated(arena: ArenaMap, *megabytes: int) -> list[Piece]:
    found = arena.allocate([size * MEGABYTES for size in megabytes])
    assert found is not None
    assert all(len(pieces) == 1 for pieces in found)
    return [pieces[0] for pieces in found]


def test_large_files_lie_bottom_up_and_small_ones_top_down() -> None:
    arena = ArenaMap(1024 * MEGABYTES)

    assert allocated(arena, 100, 70) == [piece(0, 100), piece(100, 70)]
    assert allocated(arena, 1, 2) == [piece(1021, 1), piece(1022, 2)]
    assert (arena.used_bytes, arena.fragmentation) == (173 * MEGABYTES, 0)


def test_a_large_file_takes_whole_huge_pages_and_a_small_one_whole_pages() -> None:
    assert extent_bytes(LARGE_FILE_BYTES + 1) == LARGE_FILE_BYTES + LARGE_GRANULE_BYTES
    assert extent_bytes(LARGE_FILE_BYTES - 1) == LARGE_FILE_BYTES
    assert [extent_bytes(size) for size in (0, 1, ALIGNMENT_BYTES + 1)] == [4096, 4096, 8192]


def test_the_smallest_gap_that_holds_it_is_taken() -> None:
    arena = ArenaMap(1000 * MEGABYTES)
    taken = [allocated(arena, size)[0] for size in (200, 100, 80, 100)]
    arena.free([taken[0], taken[2]])

    assert allocated(arena, 70) == [piece(300, 70)]


def test_nothing_is_taken_where_one_of_the_files_finds_no_room() -> None:
    arena = ArenaMap(150 * MEGABYTES)

    assert arena.allocate([100 * MEGABYTES, 70 * MEGABYTES]) is None
    assert arena.used_bytes == 0


def test_what_is_taken_cannot_be_claimed() -> None:
    arena = ArenaMap(10 * MEGABYTES, [piece(2, 4)])
    for taken in (piece(2, 4), piece(0, 3), piece(5, 1), piece(9, 2), Piece(offset=0, length=0)):
        with pytest.raises(ValueError, match="is not free"):
            arena.claim(taken)


def test_a_file_that_finds_no_run_is_scattered_in_chunks() -> None:
    arena = ArenaMap(200 * MEGABYTES, [piece(33, 7), piece(101, 5), piece(190, 10)])

    found = arena.scatter([110 * MEGABYTES])

    # 84 MiB are free from 106, 60 from 40, 32 from 0; whole chunks but for the end
    assert found == [(piece(106, 80), piece(40, 30))]


def test_scattering_fails_where_the_chunks_do_not_suffice() -> None:
    arena = ArenaMap(100 * MEGABYTES, [piece(at, 3) for at in range(7, 100, 10)])

    assert arena.scatter([LARGE_FILE_BYTES]) is None
    assert arena.free_bytes == 70 * MEGABYTES


def test_a_full_arena_has_no_place_for_an_empty_file_either() -> None:
    arena = ArenaMap(100 * MEGABYTES, [piece(0, 100)])

    assert arena.scatter([0]) is None


def test_sliding_neighbours_closes_the_gaps_between_them() -> None:
    taken = [piece(10, 80), piece(100, 80), piece(190, 80)]
    arena = ArenaMap(280 * MEGABYTES, taken)

    plan = compact(arena, [40 * MEGABYTES], taken)

    assert plan is not None
    rows = [(move.source // MEGABYTES, move.target // MEGABYTES) for move in plan.moves]
    assert rows == [(10, 0), (100, 80), (190, 160)]
    assert plan.files == ((piece(240, 40),),)
    assert arena.free_bytes == 0


def test_what_lies_in_the_way_moves_elsewhere_where_sliding_does_not_suffice() -> None:
    fixed, movable = [piece(0, 100), piece(180, 100), piece(292, 108)], piece(140, 10)
    arena = ArenaMap(400 * MEGABYTES, [*fixed, movable])

    plan = compact(arena, [72 * MEGABYTES], [movable])

    assert plan is not None
    assert [(move.source // MEGABYTES, move.target // MEGABYTES) for move in plan.moves] == [(140, 280)]
    assert plan.files == ((piece(100, 72),),)


def test_of_two_ways_the_one_that_moves_less_is_taken() -> None:
    taken = [piece(0, 400), piece(440, 4), piece(480, 400), piece(884, 400)]
    arena = ArenaMap(1284 * MEGABYTES, taken)

    plan = compact(arena, [72 * MEGABYTES], taken)

    assert plan is not None
    assert sum(move.length for move in plan.moves) == 4 * MEGABYTES


def test_what_may_not_move_stays() -> None:
    fixed, movable = piece(40, 20), piece(100, 20)
    arena = ArenaMap(160 * MEGABYTES, [fixed, movable])

    plan = compact(arena, [64 * MEGABYTES], [movable])

    assert plan is not None
    assert {move.source for move in plan.moves} == {movable.offset}
    assert fixed in arena.taken
    assert compact(ArenaMap(160 * MEGABYTES, [fixed, movable]), [64 * MEGABYTES], []) is None


sizes = st.one_of(
    st.integers(0, 3 * MEGABYTES),
    st.integers(LARGE_FILE_BYTES - 4096, LARGE_FILE_BYTES + 4096),
    st.integers(LARGE_FILE_BYTES, 200 * MEGABYTES),
)
arena_bytes = st.integers(1, 500).map(lambda pages: pages * MEGABYTES + 4096)
steps = st.lists(st.one_of(sizes, st.just(None)), max_size=40)


def check(arena: ArenaMap, files: Sequence[tuple[Piece, ...]]) -> None:
    """What is taken are exactly the files' pieces, apart from each other and inside."""
    pieces = sorted(piece for file in files for piece in file)
    assert arena.taken == pieces
    assert all(piece.offset % ALIGNMENT_BYTES == 0 == piece.length % ALIGNMENT_BYTES for piece in pieces)
    assert all(before.end <= after.offset for before, after in pairwise(pieces))
    assert not pieces or (pieces[0].offset >= 0 and pieces[-1].end <= arena.bytes)
    assert arena.used_bytes + sum(run.length for run in arena.free_runs()) == arena.bytes
    assert 0 <= arena.fragmentation < 1 or arena.free_bytes == 0


def check_file(file: tuple[Piece, ...], file_bytes: int) -> None:
    assert sum(piece.length for piece in file) >= max(file_bytes, 1)
    assert all(piece.length % SCATTER_BYTES == 0 for piece in file[:-1])
    if len(file) > 1:
        assert all(piece.offset % LARGE_GRANULE_BYTES == 0 == piece.length % LARGE_GRANULE_BYTES for piece in file)


@example(size_bytes=64 * MEGABYTES + 4096, script=[0, 0, 64 * MEGABYTES - 4096, 0], choose=Random(1))
@given(size_bytes=arena_bytes, script=steps, choose=st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_pieces_never_overlap_and_bytes_are_conserved(
    size_bytes: int, script: list[int | None], choose: Random
) -> None:
    arena = ArenaMap(size_bytes)
    files: list[tuple[Piece, ...]] = []
    for step in script:
        if step is None and files:
            arena.free(files.pop(choose.randrange(len(files))))
        elif step is not None:
            found = arena.allocate([step]) or arena.scatter([step])
            if found:
                check_file(found[0], step)
                files += found
        check(arena, files)


@given(size_bytes=arena_bytes, script=steps, wanted=st.lists(sizes, min_size=1, max_size=3), choose=st.data())
@settings(max_examples=200, deadline=None)
def test_compaction_keeps_every_byte_and_leaves_what_is_fixed(
    size_bytes: int, script: list[int | None], wanted: list[int], choose: st.DataObject
) -> None:
    arena = ArenaMap(size_bytes)
    pieces = [found[0][0] for step in script if step is not None and (found := arena.allocate([step]))]
    freed = choose.draw(st.sets(st.sampled_from(pieces))) if pieces else set()
    arena.free(freed)
    kept = [piece for piece in pieces if piece not in freed]
    movable = choose.draw(st.sets(st.sampled_from(kept))) if kept else set()
    before = arena.taken

    plan = compact(arena, wanted, movable)

    if plan is None:
        assert arena.taken == before
        return
    contents = replay(before, plan)
    assert arena.taken == sorted([*contents, *(file[0] for file in plan.files)])
    assert all(contents.get(piece) == piece for piece in kept if piece not in movable)
    assert sorted(contents.values()) == before
    for file, file_bytes in zip(plan.files, wanted, strict=True):
        assert len(file) == 1
        check_file(file, file_bytes)
    check(arena, [(piece,) for piece in arena.taken])


def replay(before: list[Piece], plan: Compaction) -> dict[Piece, Piece]:
    """Which piece's bytes lie where after the moves; a move may only overwrite itself and what is free."""
    contents = {piece: piece for piece in before}
    for move in plan.moves:
        origin = contents.pop(Piece(offset=move.source, length=move.length))
        target = Piece(offset=move.target, length=move.length)
        assert all(other.end <= target.offset or target.end <= other.offset for other in contents)
        contents[target] = origin
    return contents


def test_pieces_are_multiples_of_the_core_s_chunks() -> None:
    assert SCATTER_BYTES == _core.CHUNK_BYTES


def test_a_row_that_alignment_costs_less_than_all_of_them_is_found() -> None:
    def pages(offset: int, length: int) -> Piece:
        return Piece(offset=offset * ALIGNMENT_BYTES, length=length * ALIGNMENT_BYTES)

    taken = [pages(2, 1), pages(1027, 1), pages(1536, 512)]
    arena = ArenaMap(2576 * ALIGNMENT_BYTES, taken)

    hole = cheapest_slide(arena, 1536 * ALIGNMENT_BYTES, LARGE_GRANULE_BYTES, taken)

    assert hole is not None
    assert [move.length // ALIGNMENT_BYTES for move in hole.moves] == [1, 512]


def shortest_row_bytes(arena: ArenaMap, length: int, granule: int, movable: set[Piece]) -> int | None:
    """What the cheapest slide moves, by trying every row."""
    taken, found = arena.taken, []
    for first in range(len(taken)):
        cursor, moved_bytes = (taken[first - 1].end if first else 0), 0
        for at in range(first, len(taken)):
            if taken[at] not in movable:
                break
            target = aligned(cursor, granule_of_piece(taken[at]))
            moved_bytes += taken[at].length if target != taken[at].offset else 0
            cursor = target + taken[at].length
            limit = taken[at + 1].offset if at + 1 < len(taken) else arena.bytes
            if aligned(cursor, granule) + length <= limit:
                found.append(moved_bytes)
                break
    return min(found, default=None)


@st.composite
def mixed_arenas(draw: st.DrawFn) -> tuple[ArenaMap, list[Piece]]:
    """Pieces at small and at huge pages, with gaps of either kind between them."""
    taken, cursor = [], 0
    for _ in range(draw(st.integers(1, 14))):
        is_huge = draw(st.booleans())
        cursor += draw(st.integers(0, 3)) * draw(st.sampled_from([ALIGNMENT_BYTES, MEGABYTES, LARGE_GRANULE_BYTES]))
        cursor = aligned(cursor, LARGE_GRANULE_BYTES if is_huge else ALIGNMENT_BYTES)
        length = draw(st.integers(1, 4)) * (LARGE_GRANULE_BYTES if is_huge else 5 * ALIGNMENT_BYTES)
        taken.append(Piece(offset=cursor, length=length))
        cursor += length
    return ArenaMap(cursor + draw(st.integers(0, 300)) * ALIGNMENT_BYTES, taken), taken


@given(
    crowd=mixed_arenas(),
    pages=st.integers(1, 2000),
    granule=st.sampled_from([ALIGNMENT_BYTES, LARGE_GRANULE_BYTES]),
    choose=st.data(),
)
@settings(max_examples=500, deadline=None)
def test_the_slide_that_is_found_is_the_cheapest_of_all_rows(
    crowd: tuple[ArenaMap, list[Piece]], pages: int, granule: int, choose: st.DataObject
) -> None:
    arena, taken = crowd
    movable = choose.draw(st.sets(st.sampled_from(taken)))
    length = aligned(pages * ALIGNMENT_BYTES, granule)
    if best_fit(arena.free_runs(), length, granule):
        return

    hole = cheapest_slide(arena, length, granule, movable)

    assert (hole.rank[0] if hole else None) == shortest_row_bytes(arena, length, granule, movable)


@given(
    crowd=mixed_arenas(),
    wanted=st.lists(st.tuples(st.integers(1, 600), st.booleans()), min_size=1, max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_runs_sorted_by_length_give_the_same_places_as_a_look_at_each(
    crowd: tuple[ArenaMap, list[Piece]], wanted: list[tuple[int, bool]]
) -> None:
    arena, _ = crowd
    runs = FreeRuns(arena.free_runs())

    for pages, is_huge in wanted:
        granule = LARGE_GRANULE_BYTES if is_huge else ALIGNMENT_BYTES
        length = aligned(pages * ALIGNMENT_BYTES, granule)
        place = best_fit(arena.free_runs(), length, granule)
        assert runs.copy().take(length, granule) == runs.take(length, granule) == place
        if place:
            arena.claim(place)
