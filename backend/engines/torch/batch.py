"""A step as the model's layers see it: which rows belong to which slot and positions, and which are attended together.

Rows of one token each whose slots are neighbours are one call over a view of the KV memory, the shorter ones masked; a
chunk of a prompt is a call of its own. In exact mode a chunk's tokens, too, are attended as if each were decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from serverless_triton.backend.engines.kv_budget import KV_BLOCK_TOKENS

_MOST_PADDING_TOKENS = 512  # what a call of its own costs, in KV tokens read for nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One sequence's tokens in this step: rows `first` to before `last`, at positions `start`... of slot `slot`."""

    first: int
    last: int
    slot: int
    start: int

    @property
    def end(self) -> int:
        return self.start + self.last - self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Rows that each attend, as one token, to the first `length` positions of their slot.

    `slots` of them from `slot` on, one a row, or a single one that all rows share. `mask` [rows, 1, 1, length] is added
    to the scores; None where every row attends to all.
    """

    first: int
    last: int
    slot: int
    slots: int
    length: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows of one sequence that attend to it causally. `mask` [rows, positions]; None where they are all there is."""

    span: Span
    mask: torch.Tensor | None


@dataclass(slots=True, kw_only=True)
class Batch:
    """What attention needs to know of a step, and what it saw: how many layers, and the shortest of their windows.

    `spans` of one token come first, by slot: `singles` of them, their slots and positions in the two index tensors.
    """

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]  # keys and values, each [slots, kv_heads, tokens, head_dim]
    spans: Sequence[Span]
    runs: Sequence[Run]
    chunks: Sequence[Chunk]
    singles: int
    slot_index: torch.Tensor
    position_index: torch.Tensor
    most_layers: int | None = None
    attended: int = 0
    window_tokens: int | None = None
    _elsewhere: dict[torch.device, Batch] = field(default_factory=dict)

    def on(self, device: torch.device) -> Batch:
        """The same step for layers on this device: its masks and indices are there."""
        if device == self.slot_index.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = replace(
                self,
                runs=[replace(run, mask=_moved(run.mask, device)) for run in self.runs],
                chunks=[replace(chunk, mask=_moved(chunk.mask, device)) for chunk in self.chunks],
                slot_index=self.slot_index.to(device),
                position_index=self.position_index.to(device),
            )
        return self._elsewhere[device]

    @classmethod
    def of(
        cls,
        layers: Sequence[tuple[torch.Tensor, torch.Tensor]],
        spans: Sequence[Span],
        *,
        exact: bool,
        most_layers: int | None = None,
    ) -> Batch:
        keys = layers[0][0]
        singles = [span for span in spans if span.last - span.first == 1]
        assert list(spans[: len(singles)]) == singles, "spans of one token come first"
        long = spans[len(singles) :]
        runs = [_run(group, exact, keys) for group in neighbours(singles)]
        if exact:
            runs += [_piece(part, keys) for span in long for part in pieces(span)]
        return cls(
            layers=layers,
            spans=spans,
            runs=runs,
            chunks=[] if exact else [_chunk(span, keys) for span in long],
            singles=len(singles),
            slot_index=torch.tensor([span.slot for span in singles], device=keys.device),
            position_index=torch.tensor([span.start for span in singles], device=keys.device),
            most_layers=most_layers,
        )


def neighbours(singles: Sequence[Span]) -> Iterator[list[Span]]:
    """Spans of one token, by slot, in groups of consecutive slots whose lengths do not differ too much."""
    group: list[Span] = []
    for span in singles:
        if group and (span.slot != group[-1].slot + 1 or _padding([*group, span]) > _MOST_PADDING_TOKENS):
            yield group
            group = []
        group.append(span)
    if group:
        yield group


def pieces(span: Span) -> Iterator[Span]:
    """A span cut where the KV blocks end: no token attends to a block that begins after it."""
    start = span.start
    while start < span.end:
        end = min(span.end, (start // KV_BLOCK_TOKENS + 1) * KV_BLOCK_TOKENS)
        first = span.first + start - span.start
        yield Span(first=first, last=first + end - start, slot=span.slot, start=start)
        start = end


def _padding(group: Sequence[Span]) -> int:
    lengths = [span.end for span in group]
    return len(lengths) * max(lengths) - sum(lengths)


def _run(group: Sequence[Span], exact: bool, keys: torch.Tensor) -> Run:
    ends = [span.end for span in group]
    length = _aligned(max(ends)) if exact else max(ends)
    mask = None
    if exact or min(ends) < length:
        mask = _mask(torch.tensor(ends, device=keys.device), length, keys)[:, None, None]
    first, slot = group[0].first, group[0].slot
    return Run(first=first, last=first + len(group), slot=slot, slots=len(group), length=length, mask=mask)


def _piece(span: Span, keys: torch.Tensor) -> Run:
    length = _aligned(span.end)
    mask = _mask(torch.arange(span.start + 1, span.end + 1, device=keys.device), length, keys)[:, None, None]
    return Run(first=span.first, last=span.last, slot=span.slot, slots=1, length=length, mask=mask)


def _chunk(span: Span, keys: torch.Tensor) -> Chunk:
    if span.start == 0:
        return Chunk(span=span, mask=None)
    ends = torch.arange(span.start + 1, span.end + 1, device=keys.device)
    return Chunk(span=span, mask=_mask(ends, span.end, keys))


def _mask(ends: torch.Tensor, length: int, keys: torch.Tensor) -> torch.Tensor:
    """Zero before each row's end and minus infinity from there on, [rows, length]."""
    mask = torch.zeros(len(ends), length, dtype=keys.dtype, device=keys.device)
    return mask.masked_fill_(torch.arange(length, device=keys.device) >= ends[:, None], -torch.inf)


def _moved(mask: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if mask is None else mask.to(device)


def _aligned(length: int) -> int:
    return -(-length // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS
