"""perf_analyzer's sweeps, unmodified: streams at a time, and streams begun a second, up to a server's places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perf.gateway.rows import CONCURRENCY, RATE, Sweep
from perf.perf_analyzer_tool import Analysis, PerfAnalyzer, analyze
from perf.results import Measurement, percentile
from perf.workloads import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzerSweeps:
    """`folder` gets what perf_analyzer was sent and measured."""

    analyzer: PerfAnalyzer
    folder: Path
    sweep: Sweep

    def measure(self, kind: str, address: str, headers: Mapping[str, str]) -> Measurement:
        """One sweep. Raises AnalyzerFailed where perf_analyzer reports an error."""
        values = self.sweep.concurrencies if kind == CONCURRENCY else self.sweep.rates_per_s
        analyses = [self._point(kind, value, address, headers) for value in values]
        figures = {
            f"{kind}{value}_{name}": figure
            for value, analysis in zip(values, analyses, strict=True)
            for name, figure in _figures(analysis).items()
        }
        return Measurement(figures={**figures, "messages_per_s": figures[f"{kind}{values[-1]}_messages_per_s"]})

    def _point(self, kind: str, value: int, address: str, headers: Mapping[str, str]) -> Analysis:
        requests = _requests(self.sweep, self.sweep.requests(kind, value))
        asked = partial(analyze, self.analyzer, address, self.sweep.load.model, requests, self.folder, headers=headers)
        return asked(rate_per_s=value) if kind == RATE else asked(concurrency=value)


def _requests(sweep: Sweep, count: int) -> Sequence[Request]:
    """All alike; perf_analyzer keeps its own pace."""
    tokens = sweep.load.tokens
    return [
        Request(number=n, arrival_s=0.0, model=sweep.load.model, prompt="a", output_tokens=tokens) for n in range(count)
    ]


def _figures(analysis: Analysis) -> dict[str, float]:
    return {
        "first_response_p50_s": percentile(analysis.first_response_s, 50),
        "first_response_p99_s": percentile(analysis.first_response_s, 99),
        "last_response_p50_s": percentile(analysis.last_response_s, 50),
        "messages_per_s": sum(analysis.responses) / analysis.duration_s,
    }
