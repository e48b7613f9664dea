"""Attention over a flattened batch: the tokens of all sequences of a step stand in one row, [1, tokens], and each
sequence attends to its own slot of the KV memory. Hugging Face models call `attend` through their AttentionInterface.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as functional
from transformers import AttentionInterface

from serverless_triton.backend.engines.protocol import ModelNotSupported
from serverless_triton.backend.engines.torch.batch import Batch, Chunk, Piece, Run, as_rows

IMPLEMENTATION = "serverless_triton"
# What models hand to every attention function and what does not change its result here. Anything else (soft caps,
# sinks, biases) is refused: ignoring it would give wrong tokens.
_HARMLESS = frozenset({"dropout", "position_ids", "use_cache", "is_causal", "output_attentions", "return_dict"})


class LayersDone(Exception):
    """No failure: a pass that was to run `most_layers` has run them."""


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    batch: Batch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Query [1, heads, tokens, head_dim]; key and value [1, kv_heads, tokens, head_dim] → [1, tokens, heads, head_dim].

    Attends to the whole past: sequences must not be longer than the batch's `window_tokens`. Rows of no span are
    padding, and come out as zeros.
    Raises ModelNotSupported for a model whose attention is more than this, and LayersDone.
    """
    _refuse_other_attention(module, attention_mask, others)
    if batch.attended == batch.most_layers:
        raise LayersDone
    batch.attended += 1
    if sliding_window is not None:
        batch.window_tokens = min(sliding_window, batch.window_tokens or sliding_window)
    keys, values = batch.layers[module.layer_idx]
    here = batch.on(keys.device)
    query = query[0]
    _write(keys, key[0], here)
    _write(values, value[0], here)
    heads, tokens, head_dim = query.shape
    attended = query.new_zeros(tokens, heads, head_dim)
    for run in here.runs:
        attended[run.first : run.last] = _attend_run(query[:, run.first : run.last], keys, values, run, scaling)
    for piece in here.pieces:
        rows = slice(piece.span.first, piece.span.last)
        attended[rows] = _attend_piece(query[:, rows], keys, values, piece, scaling)
    for chunk in here.chunks:
        rows = slice(chunk.span.first, chunk.span.last)
        attended[rows] = _attend_chunk(query[:, rows], keys, values, chunk, scaling)
    return attended[None], None


def _write(memory: torch.Tensor, rows: torch.Tensor, batch: Batch) -> None:
    """Keys or values of the step, [kv_heads, tokens, head_dim], to their places in the KV memory."""
    if batch.singles:
        # Indexed by slot and position it would wake a thread for a few rows: 70 µs instead of 13.
        single = rows[:, : batch.singles].reshape(-1, memory.shape[-1])
        as_rows(memory).index_copy_(0, batch.cells(memory), single)
    for span in batch.spans[batch.singles :]:
        memory[span.slot, :, span.start : span.end] = rows[:, span.first : span.last]


def _attend_run(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, run: Run, scaling: float | None
) -> torch.Tensor:
    """Query [heads, rows, head_dim], each row a sequence → [rows, heads, head_dim].

    The heads that share keys become rows of one product: no key is copied or read twice.
    """
    heads, rows, head_dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    packed = query.reshape(kv_heads, group, rows, head_dim).permute(2, 0, 1, 3)
    if group < run.tile:
        packed = functional.pad(packed, (0, 0, 0, run.tile - group))
    attended = functional.scaled_dot_product_attention(
        packed,
        keys[run.slots, :, : run.length],
        values[run.slots, :, : run.length],
        attn_mask=run.mask,
        scale=scaling,
    )
    return attended[:, :, :group].reshape(rows, heads, head_dim)


def _attend_piece(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, piece: Piece, scaling: float | None
) -> torch.Tensor:
    """Query [heads, rows, head_dim], rows of one sequence → [rows, heads, head_dim]. A tile is a batch item."""
    heads, rows, head_dim = query.shape
    kv_heads, group = keys.shape[1], heads // keys.shape[1]
    tiles, _, tile, _ = piece.mask.shape
    packed = query.reshape(kv_heads, group, rows, head_dim).transpose(1, 2).reshape(kv_heads, rows * group, head_dim)
    packed = functional.pad(packed, (0, 0, 0, tiles * tile - rows * group))
    attended = functional.scaled_dot_product_attention(
        packed.view(kv_heads, tiles, tile, head_dim).transpose(0, 1),
        keys[piece.span.slot, :, : piece.length].expand(tiles, -1, -1, -1),
        values[piece.span.slot, :, : piece.length].expand(tiles, -1, -1, -1),
        attn_mask=piece.mask,
        scale=scaling,
    )
    attended = attended.transpose(0, 1).reshape(kv_heads, tiles * tile, head_dim)[:, : rows * group]
    return attended.view(kv_heads, rows, group, head_dim).transpose(0, 1).reshape(rows, heads, head_dim)


def _attend_chunk(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chunk: Chunk, scaling: float | None
) -> torch.Tensor:
    """Query [heads, rows, head_dim], rows of one sequence → [rows, heads, head_dim]."""
    slot, end = chunk.span.slot, chunk.span.end
    attended = functional.scaled_dot_product_attention(
        query[None],
        keys[slot, :, :end][None],
        values[slot, :, :end][None],
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scaling,
        enable_gqa=query.shape[0] != keys.shape[1],
    )
    return attended[0].transpose(0, 1)


def _refuse_other_attention(module: Any, mask: torch.Tensor | None, others: Mapping[str, Any]) -> None:
    more = [name for name, value in others.items() if not (value is None or value is False or name in _HARMLESS)]
    if mask is not None:
        more.append("attention_mask")
    if getattr(module, "is_cross_attention", False) or not getattr(module, "is_causal", True):
        more.append("attention that is not causal")
    if more:
        raise ModelNotSupported(f"{type(module).__name__} needs what the torch engine lacks: {', '.join(more)}")


AttentionInterface.register(IMPLEMENTATION, attend)
