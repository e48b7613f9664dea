"""Continuous batching over a Hugging Face model, in its simplest honest form: one step is one forward pass over the
last token of every running sequence and the whole prompts of those newly admitted, all flattened into one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from serverless_triton.backend.engines.generation import Generation
from serverless_triton.backend.engines.intake import Intake
from serverless_triton.backend.engines.protocol import EngineEvent, FailureEvent, GenerationRequest
from serverless_triton.backend.engines.schedule import Admitted, Schedule
from serverless_triton.backend.engines.torch.attention import Span
from serverless_triton.backend.engines.torch.causal_lm import CausalLM
from serverless_triton.backend.engines.torch.sampling import draw


class TorchEngine:
    """Implements protocol.Engine."""

    def __init__(self, model: CausalLM, intake: Intake, max_streams: int) -> None:
        self._model: CausalLM | None = model
        self._intake = intake
        self._schedule = Schedule(max_streams)

    @property
    def has_work(self) -> bool:
        return self._schedule.has_work

    def submit(self, request: GenerationRequest) -> None:
        self._schedule.check_new(request.request)
        self._schedule.add(self._intake.begin(request))

    def cancel(self, request: int) -> None:
        self._schedule.cancel(request)

    def step(self) -> list[EngineEvent]:
        events = self._schedule.take_ended()
        self._schedule.admit()
        running = self._schedule.running
        if running:
            events += self._advance(running)
        self._schedule.retire(events)
        return sorted(events, key=lambda event: event.request)

    def close(self) -> None:
        self._schedule.clear()
        self._model = None

    def _advance(self, running: Sequence[Admitted]) -> list[EngineEvent]:
        logits = _without_early_stops(running, self._logits(running))
        finite = logits.amax(dim=-1).isfinite().tolist()  # the maximum of a row with a NaN in it is NaN
        return [
            _next_token(admitted.generation, row) if ok else _failure(admitted.generation)
            for admitted, row, ok in zip(running, logits, finite, strict=True)
        ]

    def _logits(self, running: Sequence[Admitted]) -> torch.Tensor:
        """Feeds every sequence what its slot does not hold yet. Returns [len(running), vocabulary]."""
        assert self._model is not None, "the engine is closed"
        ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        for admitted in running:
            generation, start = admitted.generation, admitted.held_tokens
            feed = generation.ids[-1:] if start else [*generation.prompt_ids, *generation.ids]
            spans.append(Span(first=len(ids), last=len(ids) + len(feed), slot=admitted.slot, start=start))
            ids += feed
            positions += range(start, start + len(feed))
            admitted.held_tokens += len(feed)
        return self._model.logits(ids, positions, spans)


def _without_early_stops(running: Sequence[Admitted], logits: torch.Tensor) -> torch.Tensor:
    """No token of the stop ids before `min_tokens`."""
    early = [len(a.generation.ids) < a.generation.parameters.min_tokens for a in running]
    if not any(early):
        return logits
    logits = logits.clone()  # what the model returned was made in inference mode, which forbids a change here
    for row, admitted in enumerate(running):
        if early[row]:
            logits[row, sorted(admitted.generation.stop_ids)] = -torch.inf
    return logits


def _next_token(generation: Generation, logits: torch.Tensor) -> EngineEvent:
    position = len(generation.ids)
    text = generation.accept(draw(logits, generation.parameters, position))
    return generation.event(position, text)


def _failure(generation: Generation) -> EngineEvent:
    return FailureEvent(
        request=generation.request,
        code="INTERNAL",
        message=f"the model computed logits that are not finite at position {len(generation.ids)}, or finite ones only "
        "for stop tokens before min_tokens; its weights or its dtype are unfit for this prompt",
    )
