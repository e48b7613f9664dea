"""A step as the model's layers see it: which rows belong to which slot and positions, and which are attended together.

Rows of one token each whose slots are neighbours are one call over a view of the KV memory, the shorter ones masked; a
chunk of a prompt is a call of its own. In exact mode all queries come in tiles of one shape, decoded or not. How
far one attends, masked from its position on, follows from that position alone: a product over more keys is summed in
another order, even where all that they add is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as functional

from serverless_triton.backend.engines.torch.kv_memory import KV_ALIGNMENT_TOKENS

QUERY_TILE = 16
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

    A slot a row, from `slot` on. The queries that share keys are padded to `tile`. `mask` [rows, 1, 1, length] is added
    to the scores; None where every row attends to all.
    """

    first: int
    last: int
    slot: int
    length: int
    tile: int
    mask: torch.Tensor | None

    @property
    def slots(self) -> slice:
        return slice(self.slot, self.slot + self.last - self.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows of one sequence whose queries attend in tiles to its first `length` positions.

    `mask` [tiles, 1, tile, length]: the queries that share keys, row by row, padded to whole tiles.
    """

    span: Span
    length: int
    mask: torch.Tensor


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
    pieces: Sequence[Piece]
    chunks: Sequence[Chunk]
    singles: int
    slot_index: torch.Tensor
    position_index: torch.Tensor
    most_layers: int | None = None
    attended: int = 0
    window_tokens: int | None = None
    _elsewhere: dict[torch.device, Batch] = field(default_factory=dict)
    _cells: dict[int, torch.Tensor] = field(default_factory=dict)

    def on(self, device: torch.device) -> Batch:
        """The same step for layers on this device: its masks and indices are there."""
        if device == self.slot_index.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = replace(
                self,
                runs=[replace(run, mask=_moved(run.mask, device)) for run in self.runs],
                pieces=[replace(piece, mask=piece.mask.to(device)) for piece in self.pieces],
                chunks=[replace(chunk, mask=_moved(chunk.mask, device)) for chunk in self.chunks],
                slot_index=self.slot_index.to(device),
                position_index=self.position_index.to(device),
                _cells={},
            )
        return self._elsewhere[device]

    def cells(self, memory: torch.Tensor) -> torch.Tensor:
        """[kv_heads · singles]: which rows of `as_rows(memory)` the tokens of spans of one are, by head."""
        _, heads, tokens, head_dim = memory.shape
        slot_rows = memory.stride(0) // head_dim  # the same for all layers of a device
        if slot_rows not in self._cells:
            first = self.slot_index * slot_rows + self.position_index
            of_head = torch.arange(heads, device=first.device) * tokens
            self._cells[slot_rows] = (of_head[:, None] + first).view(-1)
        return self._cells[slot_rows]

    @classmethod
    def of(
        cls,
        layers: Sequence[tuple[torch.Tensor, torch.Tensor]],
        spans: Sequence[Span],
        *,
        exact: bool,
        group: int = 1,
        most_layers: int | None = None,
    ) -> Batch:
        """`group`: how many query heads share a head of keys."""
        keys = layers[0][0]
        singles = [span for span in spans if span.last - span.first == 1]
        assert list(spans[: len(singles)]) == singles, "spans of one token come first"
        long = spans[len(singles) :]
        tile = max(QUERY_TILE, _aligned(group, QUERY_TILE)) if exact else group
        return cls(
            layers=layers,
            spans=spans,
            runs=[_run(near, exact, tile, keys) for near in (alike(singles) if exact else neighbours(singles))],
            pieces=[_piece(part, group, tile, keys) for span in long for part in pieces(span)] if exact else [],
            chunks=[] if exact else [_chunk(span, keys) for span in long],
            singles=len(singles),
            slot_index=torch.tensor([span.slot for span in singles], device=keys.device),
            position_index=torch.tensor([span.start for span in singles], device=keys.device),
            most_layers=most_layers,
        )


def neighbours(singles: Sequence[Span]) -> list[list[Span]]:
    """Spans of one token, by slot, in groups of consecutive slots whose lengths do not differ too much."""
    return _groups(singles, lambda group, span: _padding([*group, span]) <= _MOST_PADDING_TOKENS)


def alike(singles: Sequence[Span]) -> list[list[Span]]:
    """Spans of one token, by slot, in groups of consecutive slots whose aligned lengths are the same."""
    return _groups(singles, lambda group, span: _aligned(span.end) == _aligned(group[0].end))


def _groups(singles: Sequence[Span], fits: Callable[[Sequence[Span], Span], bool]) -> list[list[Span]]:
    groups: list[list[Span]] = []
    for span in singles:
        if groups and span.slot == groups[-1][-1].slot + 1 and fits(groups[-1], span):
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def pieces(span: Span) -> Iterator[Span]:
    """A span cut so that the aligned lengths of a piece's tokens are the same."""
    start = span.start
    while start < span.end:
        end = min(span.end, _aligned(start + 1))
        first = span.first + start - span.start
        yield Span(first=first, last=first + end - start, slot=span.slot, start=start)
        start = end


def _padding(group: Sequence[Span]) -> int:
    lengths = [span.end for span in group]
    return len(lengths) * max(lengths) - sum(lengths)


def _run(near: Sequence[Span], exact: bool, tile: int, keys: torch.Tensor) -> Run:
    ends = [span.end for span in near]
    length = _aligned(max(ends)) if exact else max(ends)
    mask = None
    if exact or min(ends) < length:
        mask = _mask(torch.tensor(ends, device=keys.device), length, keys)[:, None, None]
    first = near[0].first
    return Run(first=first, last=first + len(near), slot=near[0].slot, length=length, tile=tile, mask=mask)


def _piece(span: Span, group: int, tile: int, keys: torch.Tensor) -> Piece:
    length = _aligned(span.end)
    ends = torch.arange(span.start + 1, span.end + 1, device=keys.device).repeat_interleave(group)
    ends = functional.pad(ends, (0, -len(ends) % tile), value=length)
    return Piece(span=span, length=length, mask=_mask(ends, length, keys).view(-1, 1, tile, length))


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


def _aligned(count: int, to: int = KV_ALIGNMENT_TOKENS) -> int:
    return -(-count // to) * to


def as_rows(memory: torch.Tensor) -> torch.Tensor:
    """A layer's keys or values as rows of head_dim elements, slot after slot, with what lies between two slots."""
    slots, heads, tokens, head_dim = memory.shape
    assert memory.stride()[1:] == (tokens * head_dim, head_dim, 1), "a slot's tokens lie together, head after head"
    slot_rows = memory.stride(0) // head_dim
    return memory.as_strided(((slots - 1) * slot_rows + heads * tokens, head_dim), (head_dim, 1))
