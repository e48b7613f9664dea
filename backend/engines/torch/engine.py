"""Continuous batching over a Hugging Face model: one step is one forward pass over the last token of every running
sequence and chunks of the prompts of others, all flattened into one row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from serverless_triton.backend.engines.generation import Generation
from serverless_triton.backend.engines.intake import Intake
from serverless_triton.backend.engines.protocol import EngineEvent, Exactness, FailureEvent
from serverless_triton.backend.engines.schedule import Schedule, Work
from serverless_triton.backend.engines.scheduled_engine import ScheduledEngine
from serverless_triton.backend.engines.torch.batch import Span
from serverless_triton.backend.engines.torch.causal_lm import CausalLM
from serverless_triton.backend.engines.torch.sampling import draw


class TorchEngine(ScheduledEngine):
    """Implements protocol.Engine."""

    def __init__(
        self,
        model: CausalLM,
        intake: Intake,
        schedule: Schedule,
        exactness: Exactness,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(intake, schedule, clock)
        self._model: CausalLM | None = model
        self._exactness = exactness

    @property
    def exactness(self) -> Exactness:
        return self._exactness

    def advance(self, works: Sequence[Work]) -> list[EngineEvent]:
        works = sorted(works, key=lambda work: (work.tokens > 1, work.stream.slot))  # as batch.py wants them
        generations = [work.stream.generation for work in works if work.draws]
        logits = self._logits(works)
        return _next_tokens(generations, logits) if generations else []

    def forget(self, slots: Sequence[int]) -> None:
        if slots and self._model is not None:
            self._model.kv_memory.clear(slots)

    def close(self) -> None:
        super().close()
        self._model = None

    def _logits(self, works: Sequence[Work]) -> torch.Tensor:
        """Feeds every sequence its share. Returns the logits of those that draw, [drawing, vocabulary]."""
        assert self._model is not None, "the engine is closed"
        ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        rows: list[int] = []
        for work in works:
            assert work.stream.slot is not None
            spans.append(Span(first=len(ids), last=len(ids) + work.tokens, slot=work.stream.slot, start=work.start))
            ids += work.stream.ids(work.start, work.end)
            positions += range(work.start, work.end)
            if work.draws:
                rows.append(len(ids) - 1)
        return self._model.logits(ids, positions, spans, rows)


def _next_tokens(generations: Sequence[Generation], logits: torch.Tensor) -> list[EngineEvent]:
    logits = _without_early_stops(generations, logits)
    values, tokens = logits.max(dim=-1)  # the maximum of a row with a NaN in it is NaN
    return [
        _next_token(generation, row, best) if finite else _failure(generation)
        for generation, row, best, finite in zip(
            generations, logits, tokens.tolist(), values.isfinite().tolist(), strict=True
        )
    ]


def _without_early_stops(generations: Sequence[Generation], logits: torch.Tensor) -> torch.Tensor:
    """No token of the stop ids before `min_tokens`."""
    early = [len(generation.ids) < generation.parameters.min_tokens for generation in generations]
    if not any(early):
        return logits
    logits = logits.clone()  # what the model returned was made in inference mode, which forbids a change here
    for row, generation in enumerate(generations):
        if early[row]:
            logits[row, sorted(generation.stop_ids)] = -torch.inf
    return logits


def _next_token(generation: Generation, logits: torch.Tensor, best: int) -> EngineEvent:
    position = len(generation.ids)
    token = best if generation.parameters.greedy else draw(logits.float(), generation.parameters, position)
    text = generation.accept(token)
    return generation.event(position, text)


def _failure(generation: Generation) -> EngineEvent:
    return FailureEvent(
        request=generation.request,
        code="INTERNAL",
        message=f"the model computed logits that are not finite at position {len(generation.ids)}, or finite ones only "
        "for stop tokens before min_tokens; its weights or its dtype are unfit for this prompt",
    )
