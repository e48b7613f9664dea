"""Two loads one right after the other, a rival's and ours: a shared disk changes its speed faster than rounds end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from perf.harness import Measure
from perf.results import Measurement

FIGURE = "bytes_per_s"
OURS = "ours_"


@dataclass(slots=True, kw_only=True)
class PairedRow:
    """Measures `pairs` (an odd number) at a time; who goes first alternates from pair to pair, over the rounds too."""

    rival: Measure
    ours: Measure
    pairs: int
    _ours_first: bool = field(default=True, init=False)

    def __call__(self) -> Measurement:
        """The rival's measurement of the pair with the median ratio, ours beside; details hold all pairs."""
        pairs = sorted((self._pair() for _ in range(self.pairs)), key=lambda pair: share(pair.figures))
        speeds = [[pair.figures[FIGURE], pair.figures[OURS + FIGURE]] for pair in pairs]
        middle = pairs[self.pairs // 2]
        return replace(middle, details={**middle.details, "all_bytes_per_s": speeds})

    def _pair(self) -> Measurement:
        self._ours_first = not self._ours_first
        if self._ours_first:
            ours = self.ours()
            return beside(self.rival(), ours)
        return beside(self.rival(), self.ours())


def beside(rival: Measurement, ours: Measurement) -> Measurement:
    figures = {OURS + name: value for name, value in ours.figures.items()}
    return Measurement(figures={**rival.figures, **figures}, details={**rival.details, "ours": ours.details})


def share(figures: Mapping[str, float]) -> float:
    """Our speed over the rival's."""
    return figures[OURS + FIGURE] / figures[FIGURE]
