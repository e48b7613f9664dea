"""How a claim's value, or its goal, follows from raw rounds. Pure; None where the rounds lack what a formula needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import Protocol

from perf.results import Round, percentile, values_of


class Formula(Protocol):
    def value(self, rounds: Sequence[Round]) -> float | None: ...


def median_of(rounds: Sequence[Round], row: str, metric: str) -> float | None:
    values = values_of(rounds, row, metric)
    return median(values) if values else None


def best_of(rounds: Sequence[Round], rows: Sequence[str], metric: str) -> float | None:
    """The largest median of some rows."""
    medians = [median_of(rounds, row, metric) for row in rows]
    return max((value for value in medians if value is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    metric: str
    of: str

    def value(self, rounds: Sequence[Round]) -> float | None:
        return median_of(rounds, self.of, self.metric)


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """Of a bound that each round has to keep, and not their median alone."""

    metric: str
    of: str

    def value(self, rounds: Sequence[Round]) -> float | None:
        return max(values_of(rounds, self.of, self.metric), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstPercentile:
    """Of what rows list under a detail, each row's from all rounds together: the largest row's. None where a row has
    fewer than `least`.
    """

    detail: str
    of: tuple[str, ...]
    percent: float
    least: int

    def value(self, rounds: Sequence[Round]) -> float | None:
        pooled = [
            [value for one in rounds if row in one.measurements for value in one.measurements[row].details[self.detail]]
            for row in self.of
        ]
        if min(map(len, pooled)) < self.least:
            return None
        return max(percentile(values, self.percent) for values in pooled)


@dataclass(frozen=True, slots=True, kw_only=True)
class MedianRatio:
    """The median of one rival's figure over that of another, in the same rounds."""

    metric: str
    of: str
    to: str

    def value(self, rounds: Sequence[Round]) -> float | None:
        return _ratio(median_of(rounds, self.of, self.metric), median_of(rounds, self.to, self.metric))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """What one rival's figure is above another's, measured in the same round: the median over the rounds."""

    metric: str
    of: str
    to: str

    def value(self, rounds: Sequence[Round]) -> float | None:
        pairs = [(median_of([one], self.of, self.metric), median_of([one], self.to, self.metric)) for one in rounds]
        differences = [above - below for above, below in pairs if above is not None and below is not None]
        return median(differences) if differences else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioToBest:
    """One rival's median over the largest median among others: a figure of which more is better."""

    metric: str
    of: str
    to: tuple[str, ...]

    def value(self, rounds: Sequence[Round]) -> float | None:
        return _ratio(median_of(rounds, self.of, self.metric), best_of(rounds, self.to, self.metric))


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometricRatioToBest:
    """Rivals' figures, of which less is better, over ours, each in several situations: the geometric mean over these,
    of the rival where it is lowest. `of` are our rows, one a situation, `to` each rival's in the same order.
    """

    metric: str
    of: tuple[str, ...]
    to: tuple[tuple[str, ...], ...]

    def value(self, rounds: Sequence[Round]) -> float | None:
        means = [self._mean(rounds, rows) for rows in self.to]
        known = [mean for mean in means if mean is not None]
        return min(known) if known and len(known) == len(means) else None

    def _mean(self, rounds: Sequence[Round], rows: tuple[str, ...]) -> float | None:
        pairs = zip(rows, self.of, strict=True)
        ratios = [_ratio(*(median_of(rounds, row, self.metric) for row in pair)) for pair in pairs]
        known = [ratio for ratio in ratios if ratio]
        return geometric_mean(known) if len(known) == len(ratios) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRatioToBest:
    """One figure over another of the same row, measured in turns with it: the median over the rounds.

    What slows both leaves no trace. The row is the one with the largest median of `to`; more is better.
    """

    of: str
    to: str
    rows: tuple[str, ...]

    def value(self, rounds: Sequence[Round]) -> float | None:
        medians = {row: value for row in self.rows if (value := median_of(rounds, row, self.to)) is not None}
        return self._ratio(rounds, max(sorted(medians), key=lambda row: medians[row])) if medians else None

    def _ratio(self, rounds: Sequence[Round], row: str) -> float | None:
        ratios = [_ratio(median_of([one], row, self.of), median_of([one], row, self.to)) for one in rounds]
        known = [ratio for ratio in ratios if ratio is not None]
        return median(known) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedOverhead:
    """What something costs: the speed without it over that with it, measured in turns; the rounds' median, less 1."""

    row: str
    with_it: str
    without_it: str

    def value(self, rounds: Sequence[Round]) -> float | None:
        ratio = PairedRatioToBest(of=self.without_it, to=self.with_it, rows=(self.row,)).value(rounds)
        return None if ratio is None else ratio - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRatio:
    """The median of one figure of a row over that of another figure of the same row."""

    row: str
    of: str
    to: str

    def value(self, rounds: Sequence[Round]) -> float | None:
        return _ratio(median_of(rounds, self.row, self.of), median_of(rounds, self.row, self.to))


@dataclass(frozen=True, slots=True, kw_only=True)
class CappedShare:
    """A goal that the machine bounds: a share of what the best of some rows is to another, but never above the cap."""

    cap: float
    share: float
    metric: str
    of: tuple[str, ...]
    to: str

    def value(self, rounds: Sequence[Round]) -> float | None:
        ratio = _ratio(best_of(rounds, self.of, self.metric), median_of(rounds, self.to, self.metric))
        return None if ratio is None else min(self.cap, self.share * ratio)


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
