"""`python -m perf.loader`: loading from disk and from memory, ours beside every peer."""

import sys

from perf import harness
from perf.loader.benchmark import LoaderBenchmark

if __name__ == "__main__":
    sys.exit(harness.main(LoaderBenchmark(), "perf.loader"))
