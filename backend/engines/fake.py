"""An engine that computes nothing: its tokens are a hash of prompt and position. For tests of what surrounds an engine.

It keeps the whole contract (slots, resume, cancel, stop strings, limits), so what works with it works with a real one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from serverless_triton.backend.engines.generation import Generation
from serverless_triton.backend.engines.intake import Intake
from serverless_triton.backend.engines.protocol import EngineEvent, GenerationRequest
from serverless_triton.backend.engines.schedule import Schedule

if TYPE_CHECKING:
    import torch

_LETTERS = b"abcdefghijklmnopqrstuvwxyz     "


def fake_token(prompt_ids: Sequence[int], position: int) -> int:
    """The token that every fake engine generates at `position`: the byte of a letter or a space."""
    return _LETTERS[zlib.crc32(f"{list(prompt_ids)} {position}".encode()) % len(_LETTERS)]


class ByteTokenizer:
    """Implements detokenizer.Tokenizer: a token is a byte of UTF-8."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


class FakeEngine:
    """Implements protocol.Engine. `pause` is called once a step, and may sleep or block."""

    def __init__(self, *, max_sequence_tokens: int, max_streams: int, pause: Callable[[], None] = lambda: None) -> None:
        self._schedule = Schedule(max_streams)
        self._pause = pause
        self._intake = Intake(
            tokenizer=ByteTokenizer(), vocabulary=256, eos_ids=(), max_sequence_tokens=max_sequence_tokens
        )

    @property
    def has_work(self) -> bool:
        return self._schedule.has_work

    def submit(self, request: GenerationRequest) -> None:
        self._schedule.check_new(request.request)
        self._schedule.add(self._intake.begin(request))

    def cancel(self, request: int) -> None:
        self._schedule.cancel(request)

    def step(self) -> list[EngineEvent]:
        self._pause()
        events = self._schedule.take_ended()
        self._schedule.admit()
        for admitted in self._schedule.running:
            events.append(_next_token(admitted.generation))
        self._schedule.retire(events)
        return sorted(events, key=lambda event: event.request)

    def close(self) -> None:
        self._schedule.clear()


class FakeEngineBuilder:
    """Implements protocol.EngineBuilder; looks at neither checkpoint nor tensors."""

    def __init__(self, pause: Callable[[], None] = lambda: None) -> None:
        self._pause = pause

    def learn(self, checkpoint: str, dtype: str) -> None:
        pass

    def build(
        self,
        checkpoint: str,
        tensors: Mapping[str, torch.Tensor],
        *,
        dtype: str,
        max_sequence_tokens: int,
        max_streams: int,
    ) -> FakeEngine:
        return FakeEngine(max_sequence_tokens=max_sequence_tokens, max_streams=max_streams, pause=self._pause)


def _next_token(generation: Generation) -> EngineEvent:
    position = len(generation.ids)
    text = generation.accept(fake_token(generation.prompt_ids, position))
    return generation.event(position, text)
