"""The memory for keys and values: one pool, one slot a running sequence. Who has which slot is the schedule's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from serverless_triton.backend.engines.protocol import ModelNotSupported


@dataclass(frozen=True, slots=True, kw_only=True)
class KVShape:
    """What one token costs. Taken from a Hugging Face config."""

    layers: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of_config(cls, config: Any) -> KVShape:
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )


class KVMemory:
    """`max_streams` slots of `max_sequence_tokens` each.

    Pages are touched when tokens arrive, so an idle pool costs address space only. Raises ModelNotSupported where the
    device has no room for them.
    """

    def __init__(
        self, shape: KVShape, *, dtype: torch.dtype, device: torch.device, max_sequence_tokens: int, max_streams: int
    ) -> None:
        sizes = (shape.layers, 2, max_streams, shape.kv_heads, max_sequence_tokens, shape.head_dim)
        self.max_sequence_tokens = max_sequence_tokens
        try:
            self.pool = torch.empty(sizes, dtype=dtype, device=device)  # nobody reads a position that was not written
        except (RuntimeError, TypeError) as error:  # no memory; a size beyond 64 bits
            raise ModelNotSupported(
                f"{device} has no memory for the KV cache of {math.prod(sizes) * dtype.itemsize} bytes; lower "
                f"max_streams, now {max_streams}, or max_sequence_tokens, now {max_sequence_tokens}"
            ) from error
        self.layers = [(layer[0], layer[1]) for layer in self.pool]
