"""A model together with the KV memory that it reads and writes: tokens in, logits out. The engine says what runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from serverless_triton.backend.engines.protocol import ModelNotSupported
from serverless_triton.backend.engines.torch.attention import LayersDone
from serverless_triton.backend.engines.torch.batch import Batch, Span
from serverless_triton.backend.engines.torch.kv_memory import KVMemory, SpannedKVMemory

_REHEARSED_PROMPT_TOKENS = 4


class CausalLM:
    """`model` is a Hugging Face causal LM that was built with our attention.

    With `tile`, its products are made of so many rows each, and so are the batches that it gets: exact mode. `end` is
    where its last norm is, if not on the device of the KV memory.
    """

    def __init__(
        self,
        model: Any,
        kv_memory: KVMemory | SpannedKVMemory,
        tile: int | None = None,
        end: torch.device | None = None,
    ) -> None:
        self._model = model
        self.kv_memory = kv_memory
        self._tile = tile
        self._end = end or kv_memory.device

    def logits(
        self, ids: Sequence[int], positions: Sequence[int], spans: Sequence[Span], rows: Sequence[int]
    ) -> torch.Tensor:
        """Logits after these rows' tokens, [rows, vocabulary]. Spans of one token come first, by slot."""
        return self._forward(ids, positions, self._batch(spans), rows)

    def rehearse(self, most_layers: int | None = None) -> int | None:
        """Run a prompt and a next token: a process's first pass sets up kernels, threads and buffers, and it is slow.

        All of that happens in the first layer, so `most_layers` 1 is enough where every layer has been seen to run.
        It writes into slot 0, so nobody may run yet. Returns the shortest sliding window of the layers that ran.
        Raises ModelNotSupported for a model that does not run, or that keeps its past elsewhere than in the KV memory.
        """
        count = min(_REHEARSED_PROMPT_TOKENS, self.kv_memory.max_sequence_tokens - 1)
        window_tokens = self._rehearse_step(range(count), most_layers)
        self._rehearse_step(range(count, count + 1), 1)
        self.kv_memory.clear([0])
        return window_tokens

    def _rehearse_step(self, positions: range, most_layers: int | None) -> int | None:
        layers, name = len(self.kv_memory.layers), type(self._model).__name__
        span = Span(first=0, last=len(positions), slot=0, start=positions.start)
        batch = self._batch([span], most_layers)
        try:
            self._forward([0] * len(positions), positions, batch, [len(positions) - 1])
        except LayersDone:
            return batch.window_tokens
        except (RuntimeError, TypeError, LookupError, AttributeError, ValueError, ArithmeticError) as error:
            raise ModelNotSupported(f"{name} does not run in the torch engine: {error}") from error
        if batch.attended != layers:
            ran = f"{batch.attended} of its {layers} layers"
            raise ModelNotSupported(
                f"{name} ran {ran} through the torch engine's attention; others would lose their past"
            )
        return batch.window_tokens

    def _batch(self, spans: Sequence[Span], most_layers: int | None = None) -> Batch:
        keys, _ = self.kv_memory.layers[0]
        return Batch.of(
            self.kv_memory.layers,
            spans,
            exact=self._tile is not None,
            group=self._model.config.num_attention_heads // keys.shape[1],
            most_layers=most_layers,
        )

    @torch.inference_mode()
    def _forward(self, ids: Sequence[int], positions: Sequence[int], batch: Batch, rows: Sequence[int]) -> torch.Tensor:
        device = self.kv_memory.device
        padding = [0] * (-len(ids) % self._tile if self._tile else 0)
        output = self._model(
            input_ids=torch.tensor([[*ids, *padding]], device=device),
            position_ids=torch.tensor([[*positions, *padding]], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(rows, dtype=torch.int64, device=self._end),
            batch=batch,
        )
        logits: torch.Tensor = output.logits[0]
        return logits
