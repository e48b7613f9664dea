"""An unmodified perf_analyzer wakes a model through the gateway and reports no error."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.perf_analyzer import MODELS, small_cluster
from perf.perf_analyzer_tool import AnalyzerFailed, PerfAnalyzer, analyze, find_perf_analyzer
from perf.workloads import Request, WorkloadSpec, generate
from serverless_triton.cli.local_cluster import LocalCluster


@pytest.fixture(scope="module")
def cluster(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with small_cluster(tmp_path_factory.mktemp("cluster"), demo_model) as running:
        yield running


@pytest.fixture(scope="module")
def analyzer() -> PerfAnalyzer:
    return find_perf_analyzer()


def requests_for(model: str) -> tuple[Request, ...]:
    spec = WorkloadSpec(
        seed=1, requests=4, models=(model,), rate_per_s=1.0, output_tokens_mean=8.0, max_output_tokens=8
    )
    return generate(spec)


def test_perf_analyzer_streams_from_models_that_sleep(
    analyzer: PerfAnalyzer, cluster: LocalCluster, tmp_path: Path
) -> None:
    for model in MODELS[:3]:  # room for two
        assert cluster.replicas(model) == []
        requests = requests_for(model)
        analysis = analyze(analyzer, cluster.grpc, model, requests, tmp_path)
        assert len(analysis.responses) >= len(requests)
        assert min(analysis.responses) > 0


def test_perf_analyzers_errors_are_ours(analyzer: PerfAnalyzer, cluster: LocalCluster, tmp_path: Path) -> None:
    with pytest.raises(AnalyzerFailed, match="not found"):
        analyze(analyzer, cluster.grpc, "nobody", requests_for("nobody"), tmp_path)
