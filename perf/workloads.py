"""Seeded request streams: when requests arrive, for which model, with what prompt, and how long their answers are.

Pure but for reading a file of prompts. Arrivals, models, prompts and lengths draw from streams of their own, so that
changing one leaves the others as they were.

- Arrivals: a renewal process with gamma-distributed gaps. A coefficient of variation (CV) of 1 is a Poisson process,
  8 the bursts that serverless traces show.
- Popularity: Zipf; the k-th model gets a share that is proportional to 1 / k ** exponent.
- Prompts: sentences of common words, or problems from a GSM8K file (JSON lines with a "question" each).
- Answers: log-normal lengths in tokens, cut off at a maximum.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import log, sqrt
from pathlib import Path

_VOCABULARY = (
    "a the one every river mountain village teacher child engine garden winter morning letter window story number "
    "small bright quiet early wooden distant careful simple explains carries opens follows paints counts remembers "
    "crosses under over beside before after slowly again together"
)


class BadWorkload(Exception):
    """A workload that cannot be generated; the message says what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """What a workload is like. Together with the seed it decides every request."""

    seed: int
    requests: int
    models: tuple[str, ...]  # most popular first
    rate_per_s: float
    arrival_cv: float = 1.0
    zipf_exponent: float = 0.9
    prompt_words: tuple[int, int] = (8, 40)  # least and most, of synthetic prompts
    output_tokens_mean: float = 64.0
    output_tokens_cv: float = 0.8
    max_output_tokens: int = 512

    def __post_init__(self) -> None:
        positive = ("requests", "rate_per_s", "arrival_cv", "output_tokens_mean", "output_tokens_cv")
        for name in (*positive, "max_output_tokens"):
            if getattr(self, name) <= 0:
                raise BadWorkload(f"{name} is {getattr(self, name)}; it must be above 0")
        if not self.models or self.zipf_exponent < 0:
            raise BadWorkload("a workload needs at least one model, and a zipf_exponent from 0")
        if not 1 <= self.prompt_words[0] <= self.prompt_words[1]:
            raise BadWorkload(f"prompt_words is {self.prompt_words}; use (least, most) with 1 ≤ least ≤ most")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; `arrival_s` counts from the beginning of the workload."""

    number: int
    arrival_s: float
    model: str
    prompt: str
    output_tokens: int


def generate(spec: WorkloadSpec, prompts: Sequence[str] | None = None) -> tuple[Request, ...]:
    """By arrival. `prompts` (such as `read_gsm8k` gives) are drawn from with replacement; None: synthetic text."""
    columns = zip(_arrivals(spec), _models(spec), _prompts(spec, prompts), _output_tokens(spec), strict=True)
    return tuple(
        Request(number=number, arrival_s=arrival_s, model=model, prompt=prompt, output_tokens=output_tokens)
        for number, (arrival_s, model, prompt, output_tokens) in enumerate(columns)
    )


def _random(spec: WorkloadSpec, purpose: str) -> random.Random:
    return random.Random(f"{spec.seed}/{purpose}")


def _arrivals(spec: WorkloadSpec) -> Iterator[float]:
    source = _random(spec, "arrivals")
    shape = 1 / spec.arrival_cv**2
    scale_s = 1 / (spec.rate_per_s * shape)
    return accumulate(source.gammavariate(shape, scale_s) for _ in range(spec.requests))


def _models(spec: WorkloadSpec) -> list[str]:
    return _random(spec, "models").choices(spec.models, weights=popularity(spec), k=spec.requests)


def popularity(spec: WorkloadSpec) -> tuple[float, ...]:
    """Each model's share of the requests, most popular first; they add up to 1."""
    weights = [1 / rank**spec.zipf_exponent for rank in range(1, len(spec.models) + 1)]
    return tuple(weight / sum(weights) for weight in weights)


def _prompts(spec: WorkloadSpec, prompts: Sequence[str] | None) -> list[str]:
    source = _random(spec, "prompts")
    if prompts is not None:
        return source.choices(prompts, k=spec.requests)
    return [_sentence(source, source.randint(*spec.prompt_words)) for _ in range(spec.requests)]


def _sentence(source: random.Random, words: int) -> str:
    return " ".join(source.choices(_VOCABULARY.split(), k=words)).capitalize() + "."


def _output_tokens(spec: WorkloadSpec) -> Iterator[int]:
    source = _random(spec, "output tokens")
    variance = log(1 + spec.output_tokens_cv**2)
    mean = log(spec.output_tokens_mean) - variance / 2
    for _ in range(spec.requests):
        yield min(max(1, round(source.lognormvariate(mean, sqrt(variance)))), spec.max_output_tokens)


def read_gsm8k(file: Path) -> tuple[str, ...]:
    """The problems of a GSM8K file, in its order. Raises OSError, BadWorkload."""
    try:
        questions = tuple(str(json.loads(line)["question"]) for line in file.read_text().splitlines() if line.strip())
    except (ValueError, KeyError, TypeError) as error:
        raise BadWorkload(f"{file}: not JSON lines with a question each: {error!r}") from error
    if not questions:
        raise BadWorkload(f"{file}: no questions in it")
    return questions
