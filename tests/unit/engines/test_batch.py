"""How a step's tokens are put together for attention."""

from __future__ import annotations

import torch

from serverless_triton.backend.engines.torch.batch import Batch, Span, neighbours, pieces


def singles(*places: tuple[int, int]) -> list[Span]:
    """Spans of one token by slot and position."""
    return [Span(first=i, last=i + 1, slot=slot, start=start) for i, (slot, start) in enumerate(places)]


def layers(dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(8, 1, 256, 4, dtype=dtype), torch.zeros(8, 1, 256, 4, dtype=dtype))]


def test_neighbouring_slots_of_like_lengths_are_one_group() -> None:
    groups = [[s.slot for s in group] for group in neighbours(singles((0, 9), (1, 700), (2, 710), (4, 710), (5, 5)))]
    assert groups == [[0], [1, 2], [4], [5]]


def test_a_span_is_cut_where_blocks_end() -> None:
    cut = list(pieces(Span(first=5, last=155, slot=3, start=50)))
    places = [(piece.first, piece.last, piece.start, piece.end) for piece in cut]
    assert places == [(5, 19, 50, 64), (19, 83, 64, 128), (83, 147, 128, 192), (147, 155, 192, 200)]


def test_rows_of_one_length_need_no_mask_and_shorter_ones_are_masked() -> None:
    batch = Batch.of(layers(), singles((0, 9), (1, 9)), exact=False)
    assert [(run.slot, run.slots, run.length, run.mask) for run in batch.runs] == [(0, 2, 10, None)]
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


def test_in_exact_mode_every_token_attends_to_whole_blocks_as_if_decoded() -> None:
    spans = [*singles((0, 70)), Span(first=1, last=101, slot=1, start=0)]
    batch = Batch.of(layers(), spans, exact=True)
    assert not batch.chunks
    assert [(r.first, r.last, r.slots, r.length) for r in batch.runs] == [
        (0, 1, 1, 128),
        (1, 65, 1, 64),
        (65, 101, 1, 128),
    ]
    masks = [run.mask for run in batch.runs]
    assert all(mask is not None for mask in masks)
    assert [(mask == 0).sum().item() for mask in masks if mask is not None] == [
        71,
        sum(range(1, 65)),
        sum(range(65, 101)),
    ]
