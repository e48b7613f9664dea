"""When is a model asked for next? Learned from how long it was idle before (pure).

The hybrid histogram policy of "Serverless in the Wild" (Shahrad et al., USENIX ATC '20, section 4.2): of each model a
histogram of its idle times, from the end of its last stream until the next one comes. Its head says how long nobody
comes at all (the pre-warming window: the replica may go, and is back before anybody asks), its tail when nobody is to
be expected any more (the keep-alive window). Where the histogram is not representative neither is said.

Theirs has 240 bins of a minute. Ours has as many, but of equal ratio, from a tenth of a second to four hours, because
our starts take fractions of a second. As with theirs no window is shorter than a minute: pauses within a burst of
requests say nothing of when the next burst comes, and to go between two of them would cost more than it frees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

BINS = 240
SHORTEST_S, LONGEST_S = 0.1, 4 * 3600.0
_RATIO = (LONGEST_S / SHORTEST_S) ** (1 / BINS)
HEAD, TAIL = 0.05, 0.99
MARGIN = 0.1  # by which the windows are widened on both sides
LEAST_SPREAD = 2.0  # the bins' coefficient of variation; below, idle times are all over the place
LEAST_SEEN = 10  # idle times
SHORTEST_WINDOW_S = 60.0  # a replica that would have to be back sooner stays, and none stays less
MOST_COUNTED = 1000.0  # then old idle times count half, so that new habits are learned


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Seconds since a model became idle: nobody comes before `away_s`, nobody is expected after `until_s`."""

    away_s: float
    until_s: float


@dataclass(slots=True)
class IdleTimes:
    """A histogram of one model's. `beyond` counts those longer than any bin."""

    counts: dict[int, float] = field(default_factory=dict)
    beyond: float = 0.0

    def add(self, idle_s: float) -> None:
        if idle_s >= LONGEST_S:
            self.beyond += 1
        else:
            bin_ = max(0, int(math.log(max(idle_s, SHORTEST_S) / SHORTEST_S) / math.log(_RATIO)))
            self.counts[bin_] = self.counts.get(bin_, 0.0) + 1
        if self.seen + self.beyond > MOST_COUNTED:
            self.beyond /= 2
            self.counts = {bin_: count / 2 for bin_, count in self.counts.items() if count > 0.1}

    @property
    def seen(self) -> float:
        """Within the bins."""
        return sum(self.counts.values())

    def windows(self) -> Windows | None:
        """None where the histogram is not representative."""
        if not self._is_representative():
            return None
        away_s = _lower_s(self._percentile(HEAD)) * (1 - MARGIN)
        until_s = _lower_s(self._percentile(TAIL) + 1) * (1 + MARGIN)
        return Windows(
            away_s=away_s if away_s >= SHORTEST_WINDOW_S else 0.0,
            until_s=max(until_s, SHORTEST_WINDOW_S),
        )

    def _is_representative(self) -> bool:
        seen = self.seen
        if seen < LEAST_SEEN or self.beyond > seen:
            return False
        mean = seen / BINS
        variance = sum(count * count for count in self.counts.values()) / BINS - mean * mean
        return math.sqrt(max(0.0, variance)) / mean >= LEAST_SPREAD

    def _percentile(self, share: float) -> int:
        """The first bin by which so much of all has been seen."""
        wanted, so_far = share * self.seen, 0.0
        for bin_, count in sorted(self.counts.items()):
            so_far += count
            if so_far >= wanted:
                return bin_
        raise AssertionError("asked of an empty histogram")

    def chance(self, idle_s: float, within_s: float) -> float:
        """That it is asked for within that time, after it was idle so long: 0 to 1, 0 where nothing says."""
        later = [(bin_, count) for bin_, count in self.counts.items() if _lower_s(bin_ + 1) > idle_s]
        still = sum(count for _, count in later) + self.beyond
        soon = sum(count for bin_, count in later if _lower_s(bin_) <= idle_s + within_s)
        return soon / still if still else 0.0


def _lower_s(bin_: int) -> float:
    """Where the bin begins."""
    return float(SHORTEST_S * _RATIO**bin_)


@dataclass(slots=True)
class ModelDemand:
    """One model's streams: how many there are, waiting ones included, and since when there are none."""

    streams: int = 0
    idle_since_s: float | None = None
    idle_times: IdleTimes = field(default_factory=IdleTimes)


@dataclass(slots=True)
class Demand:
    """By model. The control loop's; times are its clock's."""

    _models: dict[str, ModelDemand] = field(default_factory=dict)

    def came(self, model: str, now_s: float, *, resumes: bool = False) -> None:
        """One more stream wants it. One that resumes has been there all the time."""
        known = self._models.setdefault(model, ModelDemand())
        if not known.streams and known.idle_since_s is not None and not resumes:
            known.idle_times.add(max(0.0, now_s - known.idle_since_s))
        known.streams += 1
        known.idle_since_s = None

    def went(self, model: str, now_s: float) -> None:
        """One has ended, or given up."""
        known = self._models.setdefault(model, ModelDemand(streams=1))
        known.streams = max(0, known.streams - 1)
        if not known.streams:
            known.idle_since_s = now_s

    def idle_since_s(self, model: str) -> float | None:
        """None while it is used, or where nobody has asked for it yet."""
        known = self._models.get(model)
        return None if known is None else known.idle_since_s

    def windows(self, model: str) -> Windows | None:
        known = self._models.get(model)
        return None if known is None else known.idle_times.windows()

    def chance(self, model: str, now_s: float, within_s: float) -> float:
        """That somebody comes for it within that time, 0 to 1."""
        known = self._models.get(model)
        if known is None:
            return 0.0
        if known.idle_since_s is None:
            return 1.0 if known.streams else 0.0
        return known.idle_times.chance(now_s - known.idle_since_s, within_s)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._models))

    def forget(self, model: str) -> None:
        """It is gone from the repository."""
        if model in self._models and not self._models[model].streams:
            del self._models[model]

    def to_json(self) -> dict[str, Any]:
        """What was learned. Who is idle since when is of this process's clock alone, and stays out."""
        return {
            name: {
                "bins": [[bin_, round(count, 3)] for bin_, count in sorted(known.idle_times.counts.items())],
                "beyond": known.idle_times.beyond,
            }
            for name, known in sorted(self._models.items())
        }

    def from_json(self, value: Any) -> None:
        """Take over what `to_json` gave. Raises ValueError, TypeError, and then nothing has changed."""
        if not isinstance(value, dict):
            raise TypeError(f"is {type(value).__name__}; give idle times by model")
        self._models.update({name: ModelDemand(idle_times=_idle_times(name, said)) for name, said in value.items()})


def _idle_times(name: str, said: Any) -> IdleTimes:
    """Raises ValueError, TypeError."""
    if not isinstance(said, dict) or not said.keys() >= {"bins", "beyond"}:
        raise ValueError(f"{name} must have bins and beyond")
    counts = {int(bin_): float(count) for bin_, count in said["bins"]}
    figures = [*counts.values(), float(said["beyond"])]
    if not all(0 <= bin_ < BINS for bin_ in counts) or not all(math.isfinite(one) and one >= 0 for one in figures):
        raise ValueError(f"{name} must count idle times, from 0, in bins from 0 to {BINS - 1}")
    return IdleTimes(counts, float(said["beyond"]))
