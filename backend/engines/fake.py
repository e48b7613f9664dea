"""An engine that computes nothing: its tokens are a hash of prompt and position, or the time at which they were made.

For tests of what surrounds an engine, demos without weights and experiments with many servers. It keeps the whole
contract (slots, chunks, preemption, resume, reservations, cancel, stop strings, limits), so what works with it works
with a real one. How long it loads, how fast it is and what goes wrong are `fake_options.py`'s.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from serverless_triton.backend.engines.chat_template import ChatTemplate
from serverless_triton.backend.engines.fake_options import FakeOptions
from serverless_triton.backend.engines.generation import Generation
from serverless_triton.backend.engines.intake import Intake
from serverless_triton.backend.engines.kv_budget import KVBudget
from serverless_triton.backend.engines.protocol import NO_DIGESTS, EngineEvent, EngineSettings, Exactness
from serverless_triton.backend.engines.schedule import Schedule, Work
from serverless_triton.backend.engines.scheduled_engine import ScheduledEngine

if TYPE_CHECKING:
    import torch

CHAT_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
TIME_TOKENS = 2**31  # as many as an INT32 tensor can tell; 36 minutes
_CONTRACT = "0" * 64
_LETTERS = b"abcdefghijklmnopqrstuvwxyz     "


def fake_token(prompt_ids: Sequence[int], position: int) -> int:
    """The token that every fake engine generates at `position`: the byte of a letter or a space."""
    return _LETTERS[zlib.crc32(f"{list(prompt_ids)} {position}".encode()) % len(_LETTERS)]


def time_token(_prompt_ids: Sequence[int] = (), _position: int = 0) -> int:
    """Microseconds of this host's monotonic clock, modulo TIME_TOKENS: who hears it knows how long it was on its way.

    A resumed stream does not draw the same again.
    """
    return time.monotonic_ns() // 1000 % TIME_TOKENS


class ByteTokenizer:
    """Implements detokenizer.Tokenizer: a token is a byte of UTF-8."""

    longest_token_bytes = 1

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


class TimeTokenizer(ByteTokenizer):
    """A token of any size is a letter or a space."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(_LETTERS[token % len(_LETTERS)] for token in ids).decode()


class FakeEngine(ScheduledEngine):
    """Implements protocol.Engine. `pause` is called once a step, and may sleep, block or raise; `tokens` as in the
    options."""

    def __init__(
        self,
        *,
        max_sequence_tokens: int,
        max_streams: int,
        pause: Callable[[], None] = lambda: None,
        step_tokens: int = 512,
        kv_tokens: int | None = None,
        tokens: str = "hash",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tells_time = tokens == "time"
        intake = Intake(
            tokenizer=TimeTokenizer() if self._tells_time else ByteTokenizer(),
            vocabulary=TIME_TOKENS if self._tells_time else 256,
            eos_ids=(),
            max_sequence_tokens=max_sequence_tokens,
            chat_template=ChatTemplate(CHAT_TEMPLATE),
        )
        budget = KVBudget(
            total_tokens=kv_tokens or max_sequence_tokens * max_streams,
            slots=max_streams,
            max_sequence_tokens=max_sequence_tokens,
        )
        super().__init__(intake, Schedule(budget, step_tokens), clock)
        self._pause = pause

    @property
    def exactness(self) -> Exactness:
        if self._tells_time:
            reason = "tokens are the times at which they were made"
            return Exactness(kind="best_effort", reason=reason, contract=_CONTRACT)
        return Exactness(kind="exact", reason="tokens are a hash of prompt and position", contract=_CONTRACT)

    def step(self) -> list[EngineEvent]:
        self._pause()
        return super().step()

    def advance(self, works: Sequence[Work]) -> list[EngineEvent]:
        draw = time_token if self._tells_time else fake_token
        return [_next_token(work.stream.generation, draw) for work in works if work.draws]

    def forget(self, slots: Sequence[int]) -> None:
        pass


class FakeEngineBuilder:
    """Implements protocol.EngineBuilder; looks at neither checkpoint nor tensors, but at the `FakeOptions`."""

    def learn(self, checkpoint: str, dtype: str) -> None:
        pass

    def build(
        self,
        checkpoint: str,
        tensors: Mapping[str, torch.Tensor],
        *,
        settings: EngineSettings,
        chunk_digests: Mapping[str, Sequence[str]] = NO_DIGESTS,
    ) -> FakeEngine:
        """Raises ModelNotSupported for unknown options, FakeFault where it is told to."""
        options = FakeOptions.parse(settings.options)
        options.load()
        return FakeEngine(
            max_sequence_tokens=settings.max_sequence_tokens,
            max_streams=settings.max_streams,
            pause=options.pause(),
            step_tokens=settings.step_tokens,
            tokens=options.tokens,
        )


def _next_token(generation: Generation, draw: Callable[[Sequence[int], int], int]) -> EngineEvent:
    position = len(generation.ids)
    text = generation.accept(draw(generation.prompt_ids, position))
    return generation.event(position, text)
