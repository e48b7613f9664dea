"""Continuous batching over a Hugging Face model, in its simplest honest form: one step is one forward pass over the last token of
every running sequence and the whole prompts of those newly admitted, all flattened into one row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from serverless_triton.backend.engines.protocol import (
    EngineEvent,
    FailureEvent,
    GenerationRequest,
    InvalidRequest,
)
from serverless_triton.backend.engines.sampling_parameters import SamplingParameters
from serverless_triton.backend.engines.torch.attention import Span
from serverless_triton.backend.engines.torch.causal_lm import CausalLM
from serverless_triton.backend.engines.torch.generation import Generation
from serverless_triton.backend.engines.torch.sampling import draw


@dataclass(slots=True, kw_only=True)
class _Running:
    """An admitted sequence: `held_tokens` of it are in its slot, the rest are fed in the next step."""

    generation: Generation
    slot: int
    held_tokens: int = 0

    def feed(self) -> list[int]:
        generation = self.generation
        if self.held_tokens:
            return generation.ids[-1:]
        return [*generation.prompt_ids, *generation.ids]


class TorchEngine:
    """Implements protocol.Engine."""

    def __init__(
        self,
        *,
        model: CausalLM,
        vocabulary: int,
        eos_ids: Collection[int],
        tokenizer: Tokenizer | None,
        max_sequence_tokens: int,
    ) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._eos_ids = eos_ids
        self._tokenizer = tokenizer
        self._kv_memory = model.kv_memory
        self._max_sequence_tokens = max_sequence_tokens
        self._waiting: deque[Generation] = deque()
        self._running: dict[int, _Running] = {}
        self._ended: list[Generation] = []  # ended before their first step: resumed at their end, or cancelled in the queue

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting or self._ended)

    def submit(self, request: GenerationRequest) -> None:
        if request.request in self._known_requests():
            raise InvalidRequest(f"request {request.request} is running already; give each request a number of its own")
        generation = self._generation(request)
        generation.replay(request.resume_token_ids)
        if generation.finish_reason is not None:
            self._ended.append(generation)
        else:
            self._waiting.append(generation)

    def cancel(self, request: int) -> None:
        running = self._running.pop(request, None)
        if running is not None:
            self._kv_memory.give_back(running.slot)
        generations = [running.generation] if running else [g for g in self._waiting if g.request == request]
        for generation in generations:
            if running is None:
                self._waiting.remove(generation)
            generation.finish_reason = "cancelled"
            self._ended.append(generation)

    def step(self) -> list[EngineEvent]:
        events: list[EngineEvent] = [generation.event(len(generation.ids), "") for generation in self._ended]
        self._ended.clear()
        self._admit()
        if self._running:
            events += self._advance(list(self._running.values()))
        return sorted(events, key=lambda event: event.request)

    def close(self) -> None:
        self._waiting.clear()
        self._running.clear()
        self._ended.clear()
        del self._model, self._kv_memory

    def _known_requests(self) -> set[int]:
        return {*self._running, *(g.request for g in self._waiting), *(g.request for g in self._ended)}

    def _generation(self, request: GenerationRequest) -> Generation:
        parameters = SamplingParameters.parse(request.sampling_parameters)
        if parameters.stop and self._tokenizer is None:
            raise InvalidRequest("sampling parameter 'stop' needs text, and this model has no tokenizer; use stop_token_ids")
        prompt_ids = self._prompt_ids(request)
        self._check_ids("resume_token_ids", request.resume_token_ids)
        self._check_ids("stop_token_ids", parameters.stop_token_ids)
        room_tokens = self._max_sequence_tokens - len(prompt_ids)
        if room_tokens < 1:
            raise InvalidRequest(
                f"the prompt has {len(prompt_ids)} tokens and this model's sequences {self._max_sequence_tokens}, answer "
                f"included; shorten the prompt to at most {self._max_sequence_tokens - 1} or raise max_sequence_tokens"
            )
        return Generation(
            request=request.request,
            prompt_ids=prompt_ids,
            parameters=parameters,
            tokenizer=self._tokenizer,
            eos_ids=self._eos_ids,
            room_tokens=room_tokens,
        )

    def _prompt_ids(self, request: GenerationRequest) -> Sequence[int]:
        if (request.text is None) == (request.input_ids is None):
            raise InvalidRequest("give exactly one of text_input and input_ids")
        if request.input_ids is not None:
            ids = request.input_ids
            self._check_ids("input_ids", ids)
        elif self._tokenizer is None:
            raise InvalidRequest("this model has no tokenizer; send input_ids instead of text_input")
        else:
            ids = self._tokenizer.encode(request.text).ids
            self._check_ids("the tokenizer's ids", ids)
        if not ids:
            raise InvalidRequest("the prompt is empty; send at least one token")
        return ids

    def _check_ids(self, what: str, ids: Sequence[int]) -> None:
        wrong = [token for token in ids if type(token) is not int or not 0 <= token < self._vocabulary]
        if wrong:
            raise InvalidRequest(f"{what} holds {wrong[0]!r:.40}; this model's token ids are 0 to {self._vocabulary - 1}")

    def _admit(self) -> None:
        while self._waiting and self._kv_memory.free_slots:
            generation = self._waiting.popleft()
            self._running[generation.request] = _Running(generation=generation, slot=self._kv_memory.take())

    def _advance(self, work: Sequence[_Running]) -> list[EngineEvent]:
        logits = self._logits(work)
        finite = logits.isfinite().all(dim=-1).tolist()
        events = [
            self._next_token(running, row) if ok else self._fail(running)
            for running, row, ok in zip(work, logits, finite, strict=True)
        ]
        for running, event in zip(work, events, strict=True):
            if isinstance(event, FailureEvent) or event.finish_reason is not None:
                del self._running[event.request]
                self._kv_memory.give_back(running.slot)
        return events

    def _logits(self, work: Sequence[_Running]) -> torch.Tensor:
        """Float32 logits after the last token of each sequence, [len(work), vocabulary]."""
        ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        for running in work:
            feed, start = running.feed(), running.held_tokens
            spans.append(Span(first=len(ids), last=len(ids) + len(feed), slot=running.slot, start=start))
            ids += feed
            positions += range(start, start + len(feed))
            running.held_tokens += len(feed)
        return self._model.logits(ids, positions, spans)

    def _next_token(self, running: _Running, logits: torch.Tensor) -> EngineEvent:
        generation = running.generation
        position = len(generation.ids)
        if position < generation.parameters.min_tokens and generation.stop_ids:
            logits[list(generation.stop_ids)] = -torch.inf
        text = generation.accept(draw(logits, generation.parameters, position))
        return generation.event(position, text)

    @staticmethod
    def _fail(running: _Running) -> EngineEvent:
        return FailureEvent(
            request=running.generation.request,
            code="INTERNAL",
            message=f"the model computed logits that are not finite at position {len(running.generation.ids)}; "
            "its weights or dtype are unfit for this prompt",
        )
