"""`python -m perf.engine`: tokens a second, time to the first token and between tokens, ours beside transformers."""

import sys

from perf import harness
from perf.engine.benchmark import EngineBenchmark

if __name__ == "__main__":
    sys.exit(harness.main(EngineBenchmark(), "perf.engine"))
