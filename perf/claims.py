"""What this project promises, as data, and whether the recorded runs keep it.

A claim is the median of the last three recorded runs of a hardware class, each computed from its raw rounds. How that
is shown is `claims_report`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from perf.results import Round, Run, read_run, values_of

RESULTS = Path(__file__).parent / "results"
COUNTED_RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MedianRatio:
    """The median of one rival's figure over that of another, in the same rounds."""

    metric: str
    of: str
    to: str

    def value(self, rounds: Sequence[Round]) -> float | None:
        """None where the rounds do not have both."""
        above, below = values_of(rounds, self.of, self.metric), values_of(rounds, self.to, self.metric)
        return median(above) / median(below) if above and below else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A goal for one figure of a benchmark; `issue` is the job that must show it."""

    id: str
    benchmark: str
    formula: MedianRatio
    comparison: Literal["≥", "≤"]
    goal: float
    says: str

    def holds(self, value: float) -> bool:
        return value >= self.goal if self.comparison == "≥" else value <= self.goal


CLAIMS = (
    Claim(
        id="start.cold_vs_stock",
        benchmark="start",
        formula=MedianRatio(metric="first_token_s", of="stock", to="cold_dram"),
        comparison="≥",
        goal=10.0,
        says="request to first token of a model that is not running, weights in DRAM: "
        "how many times faster than the usual Triton Python model",
    ),
    Claim(
        id="start.cold_vs_stock_no_auto_complete",
        benchmark="start",
        formula=MedianRatio(metric="first_token_s", of="stock_no_auto_complete", to="cold_dram"),
        comparison="≥",
        goal=7.0,
        says="the same, with the rival's server spared Triton's auto-completion of model configurations",
    ),
)


def judge(run: Run) -> list[dict[str, Any]]:
    """The claims that one run's own rounds give, as they stand in its file."""
    values = {claim: claim.formula.value(run.valid_rounds) for claim in CLAIMS if claim.benchmark == run.benchmark}
    return [
        {"id": claim.id, "value": value, "goal": claim.goal, "holds": claim.holds(value)}
        for claim, value in values.items()
        if value is not None
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A claim on a hardware class by its last recorded runs, oldest first. `value` is None where there are none."""

    claim: Claim
    hardware_class: str
    value: float | None
    values: tuple[float, ...] = ()
    commits: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.value is not None and self.claim.holds(self.value)


def recorded_runs(folder: Path = RESULTS) -> list[Run]:
    """Raises UnreadableRun."""
    return [read_run(file) for file in sorted(folder.glob("*/*.json"))]


def verdicts(runs: Iterable[Run], claims: Sequence[Claim] = CLAIMS) -> list[Verdict]:
    """By claim, one for each hardware class with recorded runs of its benchmark, or one that says there are none."""
    found: list[Verdict] = []
    runs = sorted(runs, key=lambda run: run.started_at)
    for claim in claims:
        of_claim = _by_class(run for run in runs if run.benchmark == claim.benchmark)
        found += [_verdict(claim, name, of_class) for name, of_class in sorted(of_claim.items())]
        if not of_claim:
            found.append(Verdict(claim=claim, hardware_class="no recorded run", value=None))
    return found


def _by_class(runs: Iterable[Run]) -> Mapping[str, list[Run]]:
    classes: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        classes[run.hardware_class].append(run)
    return classes


def _verdict(claim: Claim, hardware_class: str, runs: Sequence[Run]) -> Verdict:
    measured = [(run.commit, claim.formula.value(run.valid_rounds)) for run in runs[-COUNTED_RUNS:]]
    values = tuple(value for _, value in measured if value is not None)
    return Verdict(
        claim=claim,
        hardware_class=hardware_class,
        value=median(values) if values else None,
        values=values,
        commits=tuple(commit for commit, value in measured if value is not None),
    )
