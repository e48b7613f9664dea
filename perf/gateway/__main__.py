"""`python -m perf.gateway`: what the gateway adds, how much it relays and how much memory it takes, beside Triton."""

import sys

from perf import harness
from perf.gateway.benchmark import GatewayBenchmark

if __name__ == "__main__":
    sys.exit(harness.main(GatewayBenchmark(), "perf.gateway"))
