"""Attention over a flattened batch: the tokens of all sequences of a step stand in one row, [1, tokens], and each
sequence attends to its own slot of the KV memory. Hugging Face models call `attend` through their AttentionInterface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from transformers import AttentionInterface

from serverless_triton.backend.engines.protocol import ModelNotSupported

IMPLEMENTATION = "serverless_triton"
# What models hand to every attention function and what does not change its result here. Anything else (soft caps,
# sinks, biases) is refused: ignoring it would give wrong tokens.
_HARMLESS = frozenset({"dropout", "position_ids", "use_cache", "is_causal", "output_attentions", "return_dict"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One sequence's tokens in this step: rows `first` to `last` of the batch, at positions `start`... of slot `slot`.

    A span is a whole prompt (`start` 0) or one token.
    """

    first: int
    last: int
    slot: int
    start: int


@dataclass(slots=True, kw_only=True)
class Batch:
    """What `attend` needs to know of a step, and what it saw: how many layers, and the shortest of their windows."""

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]  # keys and values, each [slots, kv_heads, tokens, head_dim]
    spans: Sequence[Span]
    most_layers: int | None = None
    attended: int = 0
    window_tokens: int | None = None


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

    Attends to the whole past: sequences must not be longer than the batch's `window_tokens`.
    Raises ModelNotSupported for a model whose attention is more than this, and LayersDone.
    """
    keys, values = batch.layers[module.layer_idx]
    _refuse_other_attention(module, attention_mask, others)
    if batch.attended == batch.most_layers:
        raise LayersDone
    batch.attended += 1
    if sliding_window is not None:
        batch.window_tokens = min(sliding_window, batch.window_tokens or sliding_window)
    query, key, value = query[0], key[0], value[0]
    outputs = []
    for span in batch.spans:
        rows = slice(span.first, span.last)
        end = span.start + span.last - span.first
        keys[span.slot, :, span.start : end] = key[:, rows]
        values[span.slot, :, span.start : end] = value[:, rows]
        outputs.append(_one_sequence(query[:, rows], keys[span.slot, :, :end], values[span.slot, :, :end], scaling))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def _one_sequence(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Query [heads, tokens, head_dim] over all of a sequence's keys → [tokens, heads, head_dim]."""
    heads, tokens, head_dim = query.shape
    if tokens == 1:  # the heads that share keys become rows of one product: no key is copied or read twice
        packed = query.view(1, keys.shape[0], heads // keys.shape[0], head_dim)
        attended = functional.scaled_dot_product_attention(packed, keys[None], values[None], scale=scaling)
        return attended.reshape(1, heads, head_dim)
    attended = functional.scaled_dot_product_attention(
        query[None], keys[None], values[None], is_causal=True, scale=scaling, enable_gqa=heads != keys.shape[0]
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
