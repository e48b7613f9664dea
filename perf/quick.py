"""The benchmarks in a few minutes: few rounds, so figures to look at and nothing to record. `python -m perf.quick`."""

from __future__ import annotations

import argparse
import sys

from perf import harness
from perf.loader.benchmark import LoaderBenchmark
from perf.loader.forms import LLAMA_130M
from perf.perf_analyzer import PerfAnalyzerBenchmark
from perf.start import StartBenchmark

# A tenth of the checkpoint, and beside those peers only that are installed.
SMALL_LOADS = LoaderBenchmark(name="loader-quick", shape=LLAMA_130M, needs_peers=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.quick", description=__doc__)
    parser.add_argument("--seed", type=int, default=harness.DEFAULT_SEED)
    seed = ["--seed", str(parser.parse_args().seed)]
    statuses = (
        harness.main(StartBenchmark(large=None), "perf.start", ["--rounds", "3", *seed]),
        harness.main(PerfAnalyzerBenchmark(), "perf.perf_analyzer", ["--rounds", "1", *seed]),
        harness.main(SMALL_LOADS, "perf.loader", ["--rounds", "1", *seed]),
    )
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
