"""The benchmarks in a few minutes: few rounds, so figures to look at and nothing to record. `python -m perf.quick`."""

from __future__ import annotations

import argparse
import sys

from perf import harness
from perf.engine.benchmark import EngineBenchmark
from perf.engine.rivals import ROWS
from perf.loader.benchmark import LoaderBenchmark
from perf.loader.forms import LLAMA_130M
from perf.perf_analyzer import PerfAnalyzerBenchmark
from perf.start import StartBenchmark

# A tenth of the checkpoint, and beside those peers only that are installed.
SMALL_LOADS = LoaderBenchmark(name="loader-quick", shape=LLAMA_130M, needs_peers=False)
# One batch, short answers, one dtype.
SHORT_ANSWERS = EngineBenchmark(
    name="engine-quick",
    rows=tuple(row for row in ROWS if row.dtype == "bfloat16"),
    batches=(16,),
    answer_tokens=24,
    prefills=2,
    recomputed_tokens=128,
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.quick", description=__doc__)
    parser.add_argument("--seed", type=int, default=harness.DEFAULT_SEED)
    seed = ["--seed", str(parser.parse_args().seed)]
    statuses = (
        harness.main(StartBenchmark(large=None), "perf.start", ["--rounds", "3", *seed]),
        harness.main(PerfAnalyzerBenchmark(), "perf.perf_analyzer", ["--rounds", "1", *seed]),
        harness.main(SMALL_LOADS, "perf.loader", ["--rounds", "1", *seed]),
        harness.main(SHORT_ANSWERS, "perf.engine", ["--rounds", "1", *seed]),
    )
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
