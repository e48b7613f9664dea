"""A histogram by model of the time between tokens, for Prometheus.

Its own kind, because a message may bring many tokens, each of which took an equal share of the time since the message
before: prometheus_client's takes one value a call.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class TokenTimes:
    """Of one model. One thread counts."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)  # the last is for all beyond the last bound
        self.sum_s = 0.0

    def add(self, after_s: float, tokens: int) -> None:
        """So many tokens that came together, `after_s` after those before."""
        self.counts[bisect_left(BOUNDS_S, after_s / tokens)] += tokens
        self.sum_s += after_s


class TokenTimesByModel(Collector):
    """What the registry reads."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._name, self._documentation = name, documentation
        self._by_model: dict[str, TokenTimes] = {}
        registry.register(self)

    def of(self, model: str) -> TokenTimes:
        return self._by_model.setdefault(model, TokenTimes())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=["model"])
        for model, times in sorted(self._by_model.items()):
            bounds = (*map(str, BOUNDS_S), "+Inf")
            family.add_metric([model], list(zip(bounds, accumulate(times.counts), strict=True)), times.sum_s)
        yield family
