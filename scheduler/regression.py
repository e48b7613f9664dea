"""Recursive least squares with forgetting, robust to outliers (pure).

What is observed is a sum of parts, each linear in a few parameters: the seconds of a read are a line over its bytes, a
start's fixed cost is its server's level and its model's. Each part keeps its own covariance; what two parts have in
common is dropped, so that a model can be known from one server and another model there.

Noise is relative to a `scale` that the caller gives, and is known by the middle one of what observations were off by,
so that a few large ones do not hide the next. An observation further off than `NEAR` standard deviations counts as one
that far off (Huber's weights). Where `BELIEVED` in a row lie beyond `FAR` on the same side, they are the truth,
and what was known is not. Where the last `SUSPICIOUS` were off to one side, however little, what was known may be past:
older observations count for less, until one is off to the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FORGETTING, SUSPICION = 0.87, 0.6  # what an observation counts for after each later one, and after a suspicious one
SUSPICIOUS = 4
NEAR = 0.5
FAR = 4.0
BELIEVED = 3
# As a share of the scale. Much at first: a first start is often slower than those after it.
ASSUMED_NOISE, LEAST_NOISE, MOST_NOISE = 0.3, 0.01, 1.0
NOISE_STEP = 0.1  # by which share it is corrected after an observation
MEDIAN_DEVIATIONS = 0.6745  # half of all that is normally distributed is closer than that


@dataclass(slots=True, kw_only=True)
class Fit:
    """The parameters of one part, none below its `least`, and their covariance. `prior_errors` are standard errors
    before the first observation, and the most that forgetting leads back to.
    """

    means: list[float]
    prior_errors: tuple[float, ...]
    least: tuple[float, ...]
    covariance: list[list[float]] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        if not self.covariance:
            self.doubt()

    def doubt(self, times: float = 1.0) -> None:
        """As little is known as before the first observation, but where to look; or with so many times the variance."""
        variances = [error**2 * times for error in self.prior_errors]
        size = range(len(variances))
        self.covariance = [[variances[row] if row == column else 0.0 for column in size] for row in size]

    def at(self, inputs: Sequence[float]) -> float:
        return sum(mean * x for mean, x in zip(self.means, inputs, strict=True))

    def variance(self, inputs: Sequence[float]) -> float:
        """Of `at`."""
        return max(0.0, sum(x * spread for x, spread in zip(inputs, self._spreads(inputs), strict=True)))

    def error(self, parameter: int) -> float:
        """A parameter's standard error."""
        return math.sqrt(max(0.0, self.covariance[parameter][parameter]))

    def forget(self, share: float) -> None:
        """Makes room for the next observation: earlier ones count for that share of what they did."""
        variances = [self.covariance[index][index] for index in range(len(self.means))]
        room = [error**2 / now for error, now in zip(self.prior_errors, variances, strict=True) if now > 0.0]
        factor = max(1.0, min([1.0 / share, *room]))
        self.covariance = [[value * factor for value in row] for row in self.covariance]

    def correct(self, inputs: Sequence[float], surprise: float, total_variance: float) -> None:
        """By its share in a surprise whose variance is that."""
        spreads = self._spreads(inputs)
        gains = [spread / total_variance for spread in spreads]
        moved = [mean + gain * surprise for mean, gain in zip(self.means, gains, strict=True)]
        narrowed = [
            [value - gain * spread for value, spread in zip(row, spreads, strict=True)]
            for row, gain in zip(self.covariance, gains, strict=True)
        ]
        self.covariance = _symmetric(narrowed)
        self.means = self._allowed(moved)
        self.count += 1

    def _allowed(self, means: list[float]) -> list[float]:
        """The likeliest parameters of which none is below its least: a projection, as in constrained Kalman filters.

        To raise one alone would add to what both predict: slope and intercept trade for one another, and a line that
        keeps the slope it had beside an intercept of -x is that much too high, and swings further with each start.
        """
        for index, least in enumerate(self.least):
            short, variance = least - means[index], self.covariance[index][index]
            if short > 0.0 and variance > 0.0:
                means = [mean + row[index] / variance * short for mean, row in zip(means, self.covariance, strict=True)]
        return [max(least, mean) for least, mean in zip(self.least, means, strict=True)]

    def _spreads(self, inputs: Sequence[float]) -> list[float]:
        return [sum(value * x for value, x in zip(row, inputs, strict=True)) for row in self.covariance]

    def to_json(self) -> dict[str, Any]:
        return {"means": list(self.means), "covariance": [list(row) for row in self.covariance], "count": self.count}

    def restore(self, body: Mapping[str, Any]) -> None:
        """What `to_json` wrote. Raises ValueError for anything else."""
        means, covariance = _numbers(body["means"]), [_numbers(row) for row in body["covariance"]]
        size = len(self.means)
        if len(means) != size or len(covariance) != size or any(len(row) != size for row in covariance):
            raise ValueError(f"{len(means)} parameters where there should be {size}")
        self.means = [max(least, mean) for least, mean in zip(self.least, means, strict=True)]
        self.covariance, self.count = covariance, int(body["count"])


def _symmetric(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """Forgetting multiplies what rounding made of two equal halves: after a hundred starts a variance was negative."""
    return [
        [(value + mirrored) / 2.0 for value, mirrored in zip(row, column, strict=True)]
        for row, column in zip(matrix, zip(*matrix, strict=True), strict=True)
    ]


def _numbers(values: Sequence[Any]) -> list[float]:
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a figure is not finite")
    return numbers


@dataclass(slots=True)
class Residuals:
    """What observations of one kind were off by, as a share of their scale; `run` counts outliers in a row, those that
    were too low below 0.
    """

    variance: float = ASSUMED_NOISE**2
    run: int = 0
    lean: int = 0  # observations in a row that were off to the same side, to the lower one below 0

    @property
    def share(self) -> float:
        """A typical one."""
        return math.sqrt(self.variance)

    def is_truth(self, deviations: float) -> bool:
        """Whether an observation that is so far off is one outlier too many."""
        side = 0 if abs(deviations) <= FAR else 1 if deviations > 0 else -1
        self.run = self.run + side if self.run * side > 0 else side
        if abs(self.run) < BELIEVED:
            return False
        self.run = 0
        return True

    def learn(self, deviations: float, noise_share: float) -> None:
        """From an observation that was off by so many standard deviations, so much of whose variance is noise."""
        step = NOISE_STEP if abs(deviations) > MEDIAN_DEVIATIONS else -NOISE_STEP
        self.variance *= math.exp(2.0 * step * noise_share)
        self.variance = min(MOST_NOISE**2, max(LEAST_NOISE**2, self.variance))
        side = 1 if deviations > 0 else -1
        self.lean = self.lean + side if self.lean * side > 0 else side

    def to_json(self) -> dict[str, Any]:
        return {"variance": self.variance, "run": self.run, "lean": self.lean}

    def restore(self, body: Mapping[str, Any]) -> None:
        """What `to_json` wrote. Raises ValueError for anything else."""
        (variance,) = _numbers([body["variance"]])
        self.variance = max(LEAST_NOISE**2, variance)
        self.run, self.lean = int(body["run"]), int(body["lean"])


Part = tuple[Fit, Sequence[float]]  # and its inputs


def learn(parts: Sequence[Part], observed: float, residuals: Residuals, scale: float) -> None:
    """One more observation of the parts' sum. What is not finite, or negative, says nothing."""
    if not (math.isfinite(observed) and observed >= 0.0 and scale > 0.0):
        return
    for fit, _ in parts:
        fit.forget(SUSPICION if abs(residuals.lean) >= SUSPICIOUS else FORGETTING)
    surprise = observed - sum(fit.at(inputs) for fit, inputs in parts)
    own = sum(fit.variance(inputs) for fit, inputs in parts)
    noise = residuals.variance * scale**2
    deviation = math.sqrt(own + noise)
    doubtful = max(1.0, abs(surprise) / (NEAR * deviation))  # it teaches as little as one with that much more noise
    if residuals.is_truth(surprise / deviation):
        doubtful = 1.0
        for fit, _ in parts:
            fit.doubt()
        own = sum(fit.variance(inputs) for fit, inputs in parts)
        times = max(1.0, surprise**2 / own)  # far from the priors, too
        for fit, _ in parts:
            fit.doubt(times)
        own *= times
    for fit, inputs in parts:
        fit.correct(inputs, surprise, (own + noise) * doubtful)
    residuals.learn(surprise / deviation, noise / (own + noise))
