"""The memory for keys and values: one pool, one slot a sequence. Who has which slot is the schedule's.

On a CPU the pool is address space, which takes memory where tokens have come, and gives it back when a sequence ends:
so what is in use is what the budget counted, however many slots there are. Elsewhere it is allocated as a whole.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from serverless_triton.backend.engines.kv_budget import KVBudget
from serverless_triton.backend.engines.protocol import EngineSettings, ModelNotSupported

KV_ALIGNMENT_TOKENS = 128  # a slot has a multiple of it; exact mode attends to multiples of it


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

    def token_bytes(self, dtype: torch.dtype) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPlan:
    """How many slots there are and what they may hold together."""

    slots: int
    total_tokens: int
    max_sequence_tokens: int

    @classmethod
    def of(cls, shape: KVShape, dtype: torch.dtype, device: torch.device, settings: EngineSettings) -> KVPlan:
        """Raises ModelNotSupported where the budget does not hold one sequence of full length."""
        longest, token_bytes = settings.max_sequence_tokens, shape.token_bytes(dtype)
        is_allocated = device.type != "cpu"  # then a slot counts as a whole, used or not
        least, slots = _aligned(longest) if is_allocated else longest, settings.max_streams
        given = settings.kv_cache_bytes
        room_tokens = slots * least if given is None else given // token_bytes
        if room_tokens < least:
            raise ModelNotSupported(
                f"kv_cache_bytes is {given}, and one sequence of {longest} tokens needs {least * token_bytes}; "
                "raise it or lower max_sequence_tokens"
            )
        if is_allocated:
            slots = min(slots, room_tokens // least)
        total_tokens = min(settings.max_streams * longest, room_tokens)
        return cls(slots=slots, total_tokens=total_tokens, max_sequence_tokens=longest)

    def budget(self) -> KVBudget:
        return KVBudget(total_tokens=self.total_tokens, slots=self.slots, max_sequence_tokens=self.max_sequence_tokens)


class KVMemory:
    """The slots of a plan, each with room for whole blocks, zero where no token has been written.

    `layers`: keys and values of each layer, both [slots, kv_heads, tokens, head_dim].
    Raises ModelNotSupported where the device has no room for them.
    """

    def __init__(self, shape: KVShape, plan: KVPlan, *, dtype: torch.dtype, device: torch.device) -> None:
        self.max_sequence_tokens = plan.max_sequence_tokens
        self.slot_tokens = _aligned(plan.max_sequence_tokens)
        sizes = (plan.slots, shape.layers, 2, shape.kv_heads, self.slot_tokens, shape.head_dim)
        self._slot_bytes = math.prod(sizes[1:]) * dtype.itemsize
        self._map: mmap.mmap | None = None
        try:
            if device.type == "cpu":
                self._map = _address_space(plan.slots * self._slot_bytes)
                self.pool = torch.frombuffer(self._map, dtype=dtype).view(sizes)
            else:
                self.pool = torch.zeros(sizes, dtype=dtype, device=device)
        except (RuntimeError, TypeError, OSError, OverflowError, ValueError) as error:  # no memory; beyond 64 bits
            raise ModelNotSupported(
                f"{device} has no memory for the KV cache of {plan.slots * self._slot_bytes} bytes; lower max_streams, "
                f"now {plan.slots}, or max_sequence_tokens, now {plan.max_sequence_tokens}"
            ) from error
        self.layers = [(self.pool[:, layer, 0], self.pool[:, layer, 1]) for layer in range(shape.layers)]

    @property
    def device(self) -> torch.device:
        return self.pool.device

    def clear(self, slots: Sequence[int]) -> None:
        """Zeros in place of what these slots held: nobody reads another's tokens, nor a NaN that they left."""
        for slot in slots:
            if self._map is None:
                self.pool[slot].zero_()
                continue
            first = -(-slot * self._slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (slot + 1) * self._slot_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            if first >= last:
                self.pool[slot].zero_()
                continue
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
            flat = self.pool.view(torch.uint8).view(-1)
            flat[slot * self._slot_bytes : first].zero_()
            flat[last : (slot + 1) * self._slot_bytes].zero_()


class SpannedKVMemory:
    """KV memory whose layers lie on several devices: consecutive ones in the KVMemory of each. Raises as that does."""

    def __init__(
        self, shape: KVShape, plan: KVPlan, *, dtype: torch.dtype, runs: Sequence[tuple[torch.device, int]]
    ) -> None:
        """`runs`: how many of the layers, in order, each device has."""
        assert sum(layers for _, layers in runs) == shape.layers
        self._memories = [
            KVMemory(replace(shape, layers=layers), plan, dtype=dtype, device=device) for device, layers in runs
        ]
        self.max_sequence_tokens = plan.max_sequence_tokens
        self.layers = [layer for memory in self._memories for layer in memory.layers]

    @property
    def device(self) -> torch.device:
        """Of the first layer."""
        return self._memories[0].device

    def clear(self, slots: Sequence[int]) -> None:
        """As KVMemory.clear."""
        for memory in self._memories:
            memory.clear(slots)


def _aligned(tokens: int) -> int:
    return -(-tokens // KV_ALIGNMENT_TOKENS) * KV_ALIGNMENT_TOKENS


def _address_space(size: int) -> mmap.mmap:
    """Private, zero, and in small pages: of a huge one only a few rows would be in use, and all of it would be paid."""
    space = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that has none
        space.madvise(mmap.MADV_NOHUGEPAGE)
    return space
