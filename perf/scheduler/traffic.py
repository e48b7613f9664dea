"""Azure-shaped requests: when they arrive, how long answers are and how unequal the models, from public traces.

Arrivals and lengths are consecutive requests of Azure's LLM trace of code completions (2023), whose gaps have a
coefficient of variation of 13; the models' shares are those of the functions in a slice of Azure Functions (2021).
Neither has a model column, so each request draws its model by these shares. Without the files a synthetic trace of the
same shape takes their place. The same seed gives the same requests; only reading touches files.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, pairwise
from pathlib import Path

from perf.workloads import BadWorkload, Request, WorkloadSpec, generate, popularity

REQUESTS_FILE, FUNCTIONS_FILE = "azure_llm_2023_code.csv", "azure_functions_2021_slice.csv"
PROMPT = "Once upon a time there was a river."
# A longer silence would leave most of a window of a minute empty.
LONGEST_GAP_SHARE = 0.15
_SYNTHETIC = WorkloadSpec(
    seed=1,
    requests=9000,
    models=tuple(f"function-{number}" for number in range(31)),
    rate_per_s=2.5,
    arrival_cv=8.0,
    zipf_exponent=0.9,
    output_tokens_mean=28.0,
    output_tokens_cv=1.8,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """`gaps_s` lie before each request. `shares` are the models', most popular first."""

    source: str
    gaps_s: tuple[float, ...]
    output_tokens: tuple[int, ...]
    shares: tuple[float, ...]


def read_trace(folder: Path | None) -> Trace:
    """From the folder with both files, or synthetic where there is none. Raises BadWorkload."""
    if folder is None:
        return synthetic_trace()
    try:
        rows = list(csv.DictReader((folder / REQUESTS_FILE).read_text().splitlines()))
        functions = list(csv.DictReader((folder / FUNCTIONS_FILE).read_text().splitlines()))
        times_s = [_seconds(row["TIMESTAMP"]) for row in rows]
        tokens = tuple(max(1, int(row["GeneratedTokens"])) for row in rows[1:])
        counts = sorted(Counter(row["func"] for row in functions).values(), reverse=True)
    except (OSError, KeyError, ValueError) as error:
        raise BadWorkload(f"{folder}: not the traces {REQUESTS_FILE} and {FUNCTIONS_FILE}: {error!r}") from error
    return Trace(
        source=f"{REQUESTS_FILE}, {FUNCTIONS_FILE}",
        gaps_s=tuple(after - before for before, after in pairwise(times_s)),
        output_tokens=tokens,
        shares=tuple(count / sum(counts) for count in counts),
    )


def _seconds(timestamp: str) -> float:
    """Of a time with seven decimals."""
    whole, _, fraction = timestamp.partition(".")
    return datetime.fromisoformat(whole).timestamp() + float(f"0.{fraction or 0}")


def synthetic_trace() -> Trace:
    """Gamma gaps with a coefficient of variation of 8, log-normal lengths, Zipf's popularity."""
    requests = generate(_SYNTHETIC)
    times_s = [0.0, *(request.arrival_s for request in requests)]
    return Trace(
        source="synthetic",
        gaps_s=tuple(after - before for before, after in pairwise(times_s)),
        output_tokens=tuple(request.output_tokens for request in requests),
        shares=popularity(_SYNTHETIC),
    )


def schedule(
    trace: Trace, models: Sequence[str], *, seed: str, seconds: float, rate_per_s: float, most_tokens: int
) -> tuple[Request, ...]:
    """A window of the trace, its time stretched or pressed so that this rate fills `seconds`. Raises BadWorkload."""
    count = max(1, round(seconds * rate_per_s))
    source = random.Random(f"{seed}/{rate_per_s:.3f}/{count}")
    begin = _begin(trace, count, source)
    gaps_s = trace.gaps_s[begin : begin + count]
    scale = seconds / sum(gaps_s)
    arrivals_s = accumulate(gap_s * scale for gap_s in gaps_s)
    drawn = source.choices(models, weights=trace.shares[: len(models)], k=count)
    tokens = trace.output_tokens[begin : begin + count]
    return tuple(
        Request(number=number, arrival_s=at_s, model=model, prompt=PROMPT, output_tokens=min(length, most_tokens))
        for number, (at_s, model, length) in enumerate(zip(arrivals_s, drawn, tokens, strict=True))
    )


def _begin(trace: Trace, count: int, source: random.Random) -> int:
    """Of a window without a silence that is most of it; where none was drawn, of that with the shortest."""
    last = len(trace.gaps_s) - count
    if last < 0:
        raise BadWorkload(f"{count} requests are more than the trace's {len(trace.gaps_s)}; lower the rate or seconds")
    drawn = [source.randint(0, last) for _ in range(200)]
    silences = [(_longest_share(trace.gaps_s[begin : begin + count]), begin) for begin in drawn]
    fitting = (begin for share, begin in silences if share <= LONGEST_GAP_SHARE)
    shortest, begin = min(silences)
    if shortest == float("inf"):
        raise BadWorkload(f"all of {count} requests come at once in the trace; raise the rate or seconds")
    return next(fitting, begin)


def _longest_share(gaps_s: Sequence[float]) -> float:
    """Of the longest gap in the whole."""
    whole_s = sum(gaps_s)
    return max(gaps_s) / whole_s if whole_s > 0 else float("inf")
