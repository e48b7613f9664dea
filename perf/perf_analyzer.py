"""perf_analyzer, unmodified, streaming from models that sleep, wake and are ready, with room for two of four.

It must report no error. `python -m perf.perf_analyzer`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from statistics import median

from perf import harness
from perf.harness import Measure
from perf.perf_analyzer_tool import Analysis, PerfAnalyzer, analyze, find_perf_analyzer
from perf.results import Measurement, Run
from perf.workloads import Request, WorkloadSpec, generate
from serverless_triton.backend.model_repository import EngineLimits, add_model, describe_checkpoint
from serverless_triton.cli.demo_model import ensure_demo_model
from serverless_triton.cli.local_cluster import LocalCluster

MODELS = ("smollm2-a", "smollm2-b", "smollm2-c", "smollm2-d")
ROOM_FOR = 2
REQUESTS, CONCURRENCY = 12, 2  # of each invocation
DRAM_BYTES = 1 << 30  # of the store; small, so that it is prefaulted soon
LIMITS = EngineLimits(max_sequence_tokens=1024, max_streams=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerfAnalyzerBenchmark:
    name: str = "perf_analyzer"
    headline: str = "first_response_s"
    full_rounds: int = 5
    packages: tuple[str, ...] = ()

    @contextmanager
    def rivals(self, seed: int) -> Iterator[Mapping[str, Measure]]:
        analyzer, checkpoint = find_perf_analyzer(report=print), ensure_demo_model(report=print)
        with harness.scratch_folder() as folder, small_cluster(folder, checkpoint) as cluster:
            load = Load(analyzer=analyzer, cluster=cluster, folder=folder, seed=seed)
            yield {"sleeping": load.sleeping, "waking": load.waking, "ready": load.ready}

    def documents(self, run: Run) -> Mapping[str, str]:
        return {}


@contextmanager
def small_cluster(folder: Path, checkpoint: Path) -> Iterator[LocalCluster]:
    """One server with room for two of the four models."""
    for model in MODELS:
        add_model(folder / "models", model, checkpoint, limits=LIMITS)
    replica_bytes = describe_checkpoint(checkpoint, LIMITS).kv_cache_bytes
    room_bytes = replica_bytes * ROOM_FOR + replica_bytes // 2
    models = folder / "models"
    with LocalCluster(folder, models, servers=1, device_memory_bytes=room_bytes, dram_bytes=DRAM_BYTES) as cluster:
        yield cluster


@dataclass(slots=True, kw_only=True)
class Load:
    """Invocations of perf_analyzer against the gateway. Each has a workload of its own, by the seed."""

    analyzer: PerfAnalyzer
    cluster: LocalCluster
    folder: Path
    seed: int
    _invocations: Iterator[int] = field(default_factory=count)

    def sleeping(self) -> Measurement:
        """One model that does not run."""
        model = self._asleep()[0]
        return _measurement([self._analyze(model, next(self._invocations))])

    def waking(self) -> Measurement:
        """All models at once, which take turns: there is never room for all that are asked for."""
        numbers = [next(self._invocations) for _ in MODELS]
        with ThreadPoolExecutor(len(MODELS)) as pool:
            return _measurement(list(pool.map(self._analyze, MODELS, numbers)))

    def ready(self) -> Measurement:
        """One model that runs already."""
        self.cluster.generate(MODELS[0], "Good morning.", max_tokens=1)
        return _measurement([self._analyze(MODELS[0], next(self._invocations))])

    def _asleep(self) -> list[str]:
        awake = {replica["model"] for replica in self.cluster.replicas()}
        return [model for model in MODELS if model not in awake]

    def _analyze(self, model: str, invocation: int) -> Analysis:
        """Raises AnalyzerFailed where perf_analyzer reports an error."""
        requests = self._workload(model, invocation)
        return analyze(self.analyzer, self.cluster.grpc, model, requests, self.folder, concurrency=CONCURRENCY)

    def _workload(self, model: str, invocation: int) -> tuple[Request, ...]:
        """As fast as it goes: perf_analyzer keeps its own pace."""
        return generate(
            WorkloadSpec(
                seed=self.seed * 10_000 + invocation,
                requests=REQUESTS,
                models=(model,),
                rate_per_s=1.0,
                output_tokens_mean=16.0,
                max_output_tokens=32,
            )
        )


def _measurement(analyses: Sequence[Analysis]) -> Measurement:
    """Of invocations that ran side by side. The slowest first response is the one that waited for a start."""
    first_s = [seconds for analysis in analyses for seconds in analysis.first_response_s]
    responses = sum(sum(analysis.responses) for analysis in analyses)
    figures = {
        "first_response_s": median(first_s),
        "slowest_first_response_s": max(first_s),
        "requests": len(first_s),
        "responses": responses,
        "responses_per_s": responses / max(analysis.duration_s for analysis in analyses),
    }
    return Measurement(figures=figures, details={"invocations": [asdict(analysis) for analysis in analyses]})


if __name__ == "__main__":
    sys.exit(harness.main(PerfAnalyzerBenchmark(), "perf.perf_analyzer"))
