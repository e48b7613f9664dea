"""One run of a benchmark as a file: its raw rounds, where and with what it ran, and what follows from the rounds.

Everything but reading and writing the file is pure. What is measured is the benchmarks', what is promised `claims`'.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

STAMP = "%Y%m%dT%H%M%SZ"
# Figures carry their unit at the end of their name, the longest that fits.
_UNITS = (
    ("_tokens_per_s", "tokens/s"),
    ("bytes_per_s", "B/s"),
    ("_per_s", "1/s"),
    ("_bytes", "B"),
    ("_tokens", "tokens"),
    ("_share", "share"),
    ("_s", "s"),
)


class UnreadableRun(Exception):
    """A file is no run of a benchmark; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one rival gave in one round: figures for the summary, details (receipts and the like) for people."""

    figures: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Every rival once, in `order`. An invalid one (`invalid` says why) is kept and repeated; it counts for nothing."""

    number: int
    order: tuple[str, ...]
    measurements: Mapping[str, Measurement]
    invalid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """`started_at` is UTC in ISO 8601; `hardware["class"]` says which runs may be compared."""

    benchmark: str
    started_at: str
    commit: str
    command: str
    seed: int
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]
    rounds: tuple[Round, ...] = ()

    @property
    def valid_rounds(self) -> tuple[Round, ...]:
        return tuple(round_ for round_ in self.rounds if round_.invalid is None)

    @property
    def hardware_class(self) -> str:
        return str(self.hardware["class"])

    @property
    def stamp(self) -> str:
        """`started_at` for a file name."""
        return self.started_at.replace("-", "").replace(":", "").replace("+0000", "Z")

    def and_round(self, round_: Round) -> Run:
        return replace(self, rounds=(*self.rounds, round_))


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """One rival's figure over all valid rounds."""

    row: str
    metric: str
    unit: str
    median: float
    p50: float
    p99: float
    n: int


def values_of(rounds: Iterable[Round], row: str, metric: str) -> list[float]:
    """One rival's figure, round by round; empty where nobody measured it."""
    measured = [round_.measurements[row].figures for round_ in rounds if row in round_.measurements]
    return [figures[metric] for figures in measured if metric in figures]


def summarize(rounds: Sequence[Round]) -> tuple[SummaryRow, ...]:
    """Rows by rival and metric, in alphabetical order."""
    names = {(row, metric) for round_ in rounds for row, m in round_.measurements.items() for metric in m.figures}
    return tuple(_summary_row(row, metric, values_of(rounds, row, metric)) for row, metric in sorted(names))


def _summary_row(row: str, metric: str, values: Sequence[float]) -> SummaryRow:
    return SummaryRow(
        row=row,
        metric=metric,
        unit=unit_of(metric),
        median=median(values),
        p50=percentile(values, 50),
        p99=percentile(values, 99),
        n=len(values),
    )


def unit_of(metric: str) -> str:
    return next((unit for ending, unit in _UNITS if metric.endswith(ending)), "")


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks, as numpy's default; `values` must not be empty."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def to_json(run: Run, claims: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The file's object: the run, and beside its rounds what follows from them."""
    summary = [asdict(row) for row in summarize(run.valid_rounds)]
    return {**asdict(run), "summary": summary, "claims": list(claims)}


def from_json(body: Mapping[str, Any]) -> Run:
    """The run alone: summary and claims follow from it. Raises KeyError, TypeError, ValueError for anything else."""
    known = {name: body[name] for name in ("benchmark", "started_at", "commit", "command", "hardware", "versions")}
    return Run(**known, seed=int(body["seed"]), rounds=tuple(_round(raw) for raw in body["rounds"]))


def _round(raw: Mapping[str, Any]) -> Round:
    measurements = {name: Measurement(**measured) for name, measured in raw["measurements"].items()}
    return Round(**{**raw, "order": tuple(raw["order"]), "measurements": measurements})


def read_run(file: Path) -> Run:
    """Raises UnreadableRun."""
    try:
        return from_json(json.loads(file.read_text()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UnreadableRun(f"{file} is no run of a benchmark: {error!r}") from error


def write_json(file: Path, body: Mapping[str, Any]) -> None:
    """There as a whole or not at all: a run that is cut off keeps its last complete round."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(body, indent=1) + "\n")
    partial.replace(file)
