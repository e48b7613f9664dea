"""What follows from when tokens came: speed, time to the first token (TTFT), time between tokens (ITL). Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from perf.results import percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`at_s`: when each id was there, in seconds since all prompts of the batch were handed over."""

    ids: tuple[int, ...]
    at_s: tuple[float, ...]

    @property
    def gaps_s(self) -> tuple[float, ...]:
        return tuple(after - before for before, after in zip(self.at_s, self.at_s[1:], strict=False))

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.ids).encode()).hexdigest()[:16]


def batch_figures(answers: Sequence[Answer]) -> Mapping[str, float]:
    """Of the answers to one batch, each of two tokens at least: `tokens_per_s` until the last token of all."""
    prefix = f"batch{len(answers)}"
    gaps_s = [gap_s for answer in answers for gap_s in answer.gaps_s]
    tokens = sum(len(answer.ids) for answer in answers)
    return {
        f"{prefix}_tokens_per_s": tokens / max(answer.at_s[-1] for answer in answers),
        f"{prefix}_ttft_s": median(answer.at_s[0] for answer in answers),
        f"{prefix}_itl_s": median(gaps_s),
        f"{prefix}_itl_p99_s": percentile(gaps_s, 99),
    }
