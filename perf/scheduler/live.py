"""All policies in turn on four real nodes: from a request to its first token, and how many came too late.

`python -m perf.scheduler live`. Tritonservers, agents and stores are real; the engine is a fake, whose tokens come at a
set rate, but whose weights really move through the stores, at the pace of throttled SSDs. Each policy's capacity is
measured first; the loads are shares of the slowest one's. Every measurement begins with the same state, and all
policies have the same requests. With `--real` the engine is the real one, over copies of the demo model, at one load.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from perf import harness
from perf.harness import Measure
from perf.results import Measurement, Run, percentile
from perf.scheduler import live_report
from perf.scheduler.clients import TIMED_OUT, Outcome, Task, run_clients
from perf.scheduler.fleet import DEFAULT_POLICY, Fleet, FleetSpec, fleet
from perf.scheduler.live_rows import LOADS, RIVALS, row_of
from perf.scheduler.traffic import Trace, read_trace, schedule
from serverless_triton.backend.model_repository import EngineLimits
from serverless_triton.cli.demo_model import ensure_demo_model

TRACES_VARIABLE = "AZURE_TRACES"  # a folder
CHECKPOINT_BYTES = 64 << 20
CAPACITY_RATE_PER_S = 20.0  # how many requests a second's worth of the window has; they are asked for over and over
PACE = json.dumps({"tokens_per_s": 20})
FAKE = EngineLimits(engine="fake", max_sequence_tokens=512, max_streams=4, engine_options=PACE)
TORCH = EngineLimits(mode="fast", max_sequence_tokens=256, max_streams=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveBenchmark:
    """Implements harness.Benchmark. Its rows are policies at loads. `traces`: the folder with the public ones."""

    name: str = "scheduler-live"
    headline: str = "p99_s"
    full_rounds: int = 1
    packages: tuple[str, ...] = ("grpcio",)
    policies: tuple[str, ...] = (DEFAULT_POLICY, *RIVALS)
    loads: tuple[float, ...] = LOADS
    fleet: FleetSpec = field(default_factory=lambda: FleetSpec(limits=FAKE))
    seconds: float = 28.0
    capacity_s: float = 16.0
    at_a_time: int = 48  # while capacity is measured
    most_tokens: int = 128
    traces: Path | None = None
    write_checkpoint: Callable[[Path, int], None] | None = None  # None: as many bytes as CHECKPOINT_BYTES says

    @contextmanager
    def rivals(self, seed: int) -> Iterator[Mapping[str, Measure]]:
        trace = read_trace(self.traces)
        write = self.write_checkpoint or write_bytes
        with harness.scratch_folder() as folder, fleet(self.fleet, folder, write) as nodes:
            comparison = Comparison(benchmark=self, fleet=nodes, trace=trace, seed=seed)
            capacities = {policy: comparison.capacity_per_s(policy) for policy in self.policies}
            slowest_per_s = min(capacities.values())
            yield {
                row_of(policy, load): partial(comparison.measure, policy, load * slowest_per_s, capacities[policy])
                for policy in self.policies
                for load in self.loads
            }

    def documents(self, run: Run) -> Mapping[str, str]:
        return live_report.documents(run)


def write_bytes(folder: Path, number: int) -> None:
    """Weights that nobody computes with, another file for each model."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(number)
    weights = torch.randint(0, 256, (CHECKPOINT_BYTES,), dtype=torch.uint8, generator=generator)
    save_file({"model.layers.0.weight": weights}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 256, "dtype": "bfloat16"})
    )


def copy_demo_model(folder: Path, number: int) -> None:
    """The demo model as files of its own: to stores it is another one."""
    shutil.copytree(ensure_demo_model(), folder)


REAL = LiveBenchmark(
    name="scheduler-live-real",
    packages=("grpcio", "torch", "transformers"),
    loads=(0.6,),
    fleet=FleetSpec(
        models=6,
        models_in_dram=1,
        models_on_device=1,
        ssd_bytes_per_second=128 << 20,
        limits=TORCH,
        timeout_s=30.0,
    ),
    seconds=20.0,
    capacity_s=16.0,
    at_a_time=8,
    most_tokens=16,
    write_checkpoint=copy_demo_model,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Measures one policy at a time, always from the same beginning."""

    benchmark: LiveBenchmark
    fleet: Fleet
    trace: Trace
    seed: int

    def capacity_per_s(self, policy: str) -> float:
        """Requests that it finishes a second with more of them under way than there are places."""
        seconds = self.benchmark.capacity_s
        outcomes = self._run(
            policy, rate_per_s=CAPACITY_RATE_PER_S, seconds=seconds, at_a_time=self.benchmark.at_a_time
        )
        rate_per_s = finished_per_s(outcomes, from_s=seconds / 4, until_s=seconds)
        print(f"capacity of {policy}: {rate_per_s:.2f} requests/s", file=sys.stderr)
        return rate_per_s

    def measure(self, policy: str, rate_per_s: float, capacity_per_s: float) -> Measurement:
        outcomes = self._run(policy, rate_per_s=rate_per_s, seconds=self.benchmark.seconds)
        figures = figures_of(outcomes, self.benchmark.fleet.timeout_s)
        told = {"workload": self.trace.source, "requests": [_told(outcome) for outcome in outcomes]}
        return Measurement(
            figures={**figures, "rate_per_s": rate_per_s, "capacity_per_s": capacity_per_s}, details=told
        )

    def _run(self, policy: str, *, rate_per_s: float, seconds: float, at_a_time: int = 0) -> list[Outcome]:
        benchmark = self.benchmark
        requests = schedule(
            self.trace,
            benchmark.fleet.names,
            seed=str(self.seed),
            seconds=seconds,
            rate_per_s=rate_per_s,
            most_tokens=benchmark.most_tokens,
        )
        self.fleet.begin_anew(policy)
        task = Task(
            address=self.fleet.cluster.grpc,
            requests=requests,
            timeout_s=benchmark.fleet.timeout_s,
            at_a_time=at_a_time,
            seconds=seconds if at_a_time else 0.0,
        )
        return run_clients(task)


def finished_per_s(outcomes: Sequence[Outcome], *, from_s: float, until_s: float) -> float:
    done = sum(not outcome.failure and from_s < outcome.ended_s <= until_s for outcome in outcomes)
    return done / (until_s - from_s)


def figures_of(outcomes: Sequence[Outcome], timeout_s: float) -> dict[str, float]:
    """Startup latency by the client and by the gateway's receipts; no token counts as the timeout."""
    client_s = [timeout_s if one.startup_s is None else one.startup_s for one in outcomes]
    gateway_s = [float(one.receipt.get("actual_s", timeout_s)) for one in outcomes]
    tiers = [one.receipt.get("tier") or "warm" for one in outcomes if one.receipt]
    return {
        "requests": float(len(outcomes)),
        "mean_s": fmean(client_s),
        "p50_s": percentile(client_s, 50),
        "p99_s": percentile(client_s, 99),
        "gateway_mean_s": fmean(gateway_s),
        "gateway_p99_s": percentile(gateway_s, 99),
        "timeouts": float(sum(one.failure == TIMED_OUT for one in outcomes)),
        "failures": float(sum(bool(one.failure) and one.failure != TIMED_OUT for one in outcomes)),
        **{f"{tier}_starts": float(tiers.count(tier)) for tier in ("warm", "dram", "ssd")},
    }


def _told(outcome: Outcome) -> list[object]:
    """For the run's file: model, when it was asked, startup by client and gateway, kind, tier, server, what failed, and
    what the replica's start was predicted to take.
    """
    receipt = outcome.receipt
    startup_s = None if outcome.startup_s is None else round(outcome.startup_s, 4)
    gateway_s = round(float(receipt["actual_s"]), 4) if receipt else None
    where = (receipt.get("kind"), receipt.get("tier"), receipt.get("server"))
    predicted_s = receipt.get("predicted_s")
    predicted = None if predicted_s is None else round(predicted_s, 4)
    return [outcome.model, round(outcome.asked_s, 3), startup_s, gateway_s, *where, outcome.failure, predicted]


def main(arguments: Sequence[str]) -> int:
    benchmark, rest = parse(arguments)
    return harness.main(benchmark, "perf.scheduler live", rest)


def parse(arguments: Sequence[str]) -> tuple[LiveBenchmark, list[str]]:
    """The benchmark that is asked for, and the options that all benchmarks have."""
    parser = argparse.ArgumentParser(prog="python -m perf.scheduler live", add_help=False, allow_abbrev=False)
    parser.add_argument("--traces", type=Path, default=os.environ.get(TRACES_VARIABLE))
    parser.add_argument("--policies", type=lambda text: tuple(text.split(",")), default=LiveBenchmark().policies)
    parser.add_argument("--real", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    traces = None if options.traces is None else Path(options.traces)
    return replace(REAL if options.real else LiveBenchmark(), traces=traces, policies=options.policies), rest
