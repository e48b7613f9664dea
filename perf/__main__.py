"""`python -m perf` runs every benchmark at full length; `python -m perf claims` says what the recorded runs promise."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from perf import claims_report, harness
from perf.engine.benchmark import EngineBenchmark
from perf.gateway.benchmark import GatewayBenchmark
from perf.harness import Benchmark
from perf.loader.benchmark import LoaderBenchmark
from perf.perf_analyzer import PerfAnalyzerBenchmark
from perf.scheduler.estimate import EstimateBenchmark
from perf.scheduler.live import LiveBenchmark
from perf.start import StartBenchmark
from perf.worker_death import WorkerDeathBenchmark

BENCHMARKS: tuple[tuple[Benchmark, str], ...] = (
    (StartBenchmark(), "perf.start"),
    (PerfAnalyzerBenchmark(), "perf.perf_analyzer"),
    (LoaderBenchmark(), "perf.loader"),
    (EngineBenchmark(), "perf.engine"),
    (GatewayBenchmark(), "perf.gateway"),
    (WorkerDeathBenchmark(), "perf.worker_death"),
    (LiveBenchmark(), "perf.scheduler live"),
    (EstimateBenchmark(), "perf.scheduler estimate"),
)


def main(arguments: Sequence[str]) -> int:
    """Options are those of each benchmark. 0 only if all of them ran to their end, or all claims hold."""
    if arguments[:1] == ["claims"]:
        return claims_report.main(arguments[1:])
    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\n\nOptions, for every benchmark alike: see `python -m {BENCHMARKS[0][1]} --help`.")
        return 0
    failed = [module for benchmark, module in BENCHMARKS if harness.main(benchmark, module, arguments)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
