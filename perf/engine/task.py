"""One contender's work as data: what its process is told, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`contender` is one of contenders.CONTENDERS, with `checkpoint` in `dtype` on `threads` threads.

    For each of `batches` it answers that many of `prompts` at once, each with `answer_tokens` tokens, greedily and past
    any end of text. The first of `prefills` is a rehearsal, the others are timed. `recomputed_tokens`, where it is not
    0, is the length of a sequence that is decoded once and then recomputed from its ids.
    """

    contender: str
    checkpoint: Path
    dtype: str
    threads: int
    batches: tuple[int, ...]
    prompts: tuple[Ids, ...]
    answer_tokens: int
    prefills: tuple[Ids, ...]
    recomputed_tokens: int = 0

    @property
    def longest_tokens(self) -> int:
        """Prompt and answer together."""
        answered = max(map(len, self.prompts)) + self.answer_tokens
        return max(answered, *(len(prompt) + 1 for prompt in self.prefills), self.recomputed_tokens + 1)

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)


def task_from_json(text: str) -> Task:
    raw = json.loads(text)
    tuples = {name: tuple(map(tuple, raw[name])) for name in ("prompts", "prefills")}
    return Task(**{**raw, **tuples, "checkpoint": Path(raw["checkpoint"]), "batches": tuple(raw["batches"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`answers`: a digest of the ids of each answer of the largest batch, in the order of the prompts."""

    figures: Mapping[str, float]
    answers: Sequence[str]
