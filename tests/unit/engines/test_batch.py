"""How a step's tokens are put together for attention."""

from __future__ import annotations

import torch

from serverless_triton.backend.engines.torch.batch import QUERY_TILE, Batch, Span, alike, neighbours, pieces


def singles(*places: tuple[int, int]) -> list[Span]:
    """Spans of one token by slot and position."""
    return [Span(first=i, last=i + 1, slot=slot, start=start) for i, (slot, start) in enumerate(places)]


def layers(dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(8, 1, 256, 4, dtype=dtype), torch.zeros(8, 1, 256, 4, dtype=dtype))]


def test_neighbouring_slots_of_like_lengths_are_one_group() -> None:
    groups = [[s.slot for s in group] for group in neighbours(singles((0, 9), (1, 700), (2, 710), (4, 710), (5, 5)))]
    assert groups == [[0], [1, 2], [4], [5]]


def test_slots_are_alike_where_their_aligned_lengths_are_the_same() -> None:
    groups = [[s.slot for s in group] for group in alike(singles((0, 9), (1, 127), (2, 128), (3, 9), (5, 9)))]
    assert groups == [[0, 1], [2], [3], [5]]


def test_a_span_is_cut_where_aligned_lengths_change() -> None:
    cut = list(pieces(Span(first=5, last=255, slot=3, start=50)))
    places = [(piece.first, piece.last, piece.start, piece.end) for piece in cut]
    assert places == [(5, 83, 50, 128), (83, 211, 128, 256), (211, 255, 256, 300)]


def test_rows_of_one_length_need_no_mask_and_shorter_ones_are_masked() -> None:
    batch = Batch.of(layers(), singles((0, 9), (1, 9)), exact=False)
    assert [(run.slots, run.length, run.tile, run.mask) for run in batch.runs] == [(slice(0, 2), 10, 1, None)]
    (run,) = Batch.of(layers(), singles((0, 9), (1, 7)), exact=False).runs
    assert run.length == 10
    assert run.mask is not None
    assert (run.mask[:, 0, 0] == 0).sum(dim=1).tolist() == [10, 8]


def test_a_chunk_is_masked_only_where_something_came_before_it() -> None:
    first, later = Span(first=0, last=3, slot=0, start=0), Span(first=3, last=5, slot=1, start=2)
    batch = Batch.of(layers(), [first, later], exact=False)
    assert batch.chunks[0].mask is None
    assert batch.chunks[1].mask is not None
    assert (batch.chunks[1].mask == 0).tolist() == [[True, True, True, False], [True] * 4]


def test_in_exact_mode_all_queries_come_in_tiles_of_one_shape_and_attend_to_aligned_lengths() -> None:
    spans = [*singles((0, 130)), Span(first=1, last=201, slot=1, start=0)]
    batch = Batch.of(layers(), spans, exact=True, group=3)
    assert not batch.chunks
    (run,) = batch.runs
    assert (run.first, run.last, run.length, run.tile) == (0, 1, 256, QUERY_TILE)
    assert run.mask is not None
    assert (run.mask == 0).sum() == 131
    assert [(p.span.first, p.span.last, p.length) for p in batch.pieces] == [(1, 129, 128), (129, 201, 256)]
    assert [tuple(piece.mask.shape) for piece in batch.pieces] == [(24, 1, QUERY_TILE, 128), (14, 1, QUERY_TILE, 256)]


def test_a_tile_masks_what_comes_after_each_of_its_rows_tokens() -> None:
    piece, _ = Batch.of(layers(), [Span(first=0, last=6, slot=0, start=124)], exact=True, group=3).pieces
    seen = (piece.mask == 0).sum(dim=-1).flatten().tolist()
    assert seen == [125] * 3 + [126] * 3 + [127] * 3 + [128] * 3 + [128] * 4  # the last four are no one's


def test_more_heads_of_one_key_than_a_tile_has_rows_get_a_larger_tile() -> None:
    (run,) = Batch.of(layers(), singles((0, 5)), exact=True, group=QUERY_TILE + 1).runs
    assert run.tile == 2 * QUERY_TILE
