"""The gateway beside the tritonserver that it stands before, in the same run: time it adds, messages, CPU, memory.

Engines are fakes, whose tokens say when they were made: what is measured is the way, and not who computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from perf import harness
from perf.gateway import report, rows
from perf.gateway.children import child, run_listener
from perf.gateway.listener import Task
from perf.gateway.rows import GATEWAY, WAYS, Load, Sweep
from perf.gateway.sweeps import AnalyzerSweeps
from perf.gateway.watch import watched
from perf.harness import Measure
from perf.perf_analyzer_tool import find_perf_analyzer
from perf.results import Measurement, Run
from serverless_triton.backend.model_repository import add_model, describe_checkpoint
from serverless_triton.cli.demo_model import ensure_demo_model
from serverless_triton.cli.local_cluster import LocalCluster
from serverless_triton.scheduler.runtime import GRPC_EXPERIMENTS, WITHOUT_EVENT_ENGINE

DRAM_BYTES = 1 << 30
SCHEDULER = "scheduler"  # the process that the gateway is in
# A client of its own has a connection of its own; thousands of idle ones share some.
MOST_CONNECTIONS = 50
# What a scheduler's process sets before it imports gRPC.
AS_THE_SCHEDULER: Mapping[str, str] = MappingProxyType({GRPC_EXPERIMENTS: WITHOUT_EVENT_ENGINE})
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayBenchmark:
    """Implements harness.Benchmark. Its rows are those of `rows`."""

    name: str = "gateway"
    headline: str = "messages_per_s"
    full_rounds: int = 5
    packages: tuple[str, ...] = ("grpcio", "protobuf")
    paced: Load = rows.PACED_LOAD
    flood: Load = rows.FLOOD_LOAD
    idle: Load = rows.IDLE_LOAD
    relay: Load = rows.RELAY_LOAD
    sweep: Sweep = rows.SWEEPS

    @contextmanager
    def rivals(self, _seed: int) -> Iterator[Mapping[str, Measure]]:
        analyzer, checkpoint = find_perf_analyzer(report=print), ensure_demo_model(report=print)
        served = (self.paced, self.flood, self.idle, self.sweep.load)
        with harness.scratch_folder() as folder, cluster_of(served, folder, checkpoint) as cluster:
            add_model(folder / "relayed", self.relay.model, checkpoint, limits=self.relay.limits)
            asked = ClusterRows(cluster=cluster)
            sweeps = AnalyzerSweeps(analyzer=analyzer, folder=folder, sweep=self.sweep)
            yield {
                **{
                    f"{load.model}.{way}": partial(asked.measure, way, load)
                    for load in (self.paced, self.flood, self.idle)
                    for way in WAYS
                },
                **{
                    f"{kind}.{way}": partial(self._swept, asked, sweeps, kind, way)
                    for kind in (rows.CONCURRENCY, rows.RATE)
                    for way in WAYS
                },
                rows.RELAY_1: partial(relayed, self.relay, folder / "relayed", 1),
                rows.RELAY_8: partial(relayed, self.relay, folder / "relayed", 8),
            }

    def _swept(self, asked: ClusterRows, sweeps: AnalyzerSweeps, kind: str, way: str) -> Measurement:
        asked.wake(self.sweep.load)
        return sweeps.measure(kind, asked.address(way), asked.headers(way))

    def documents(self, run: Run) -> Mapping[str, str]:
        return report.documents(run)


@contextmanager
def cluster_of(loads: Sequence[Load], folder: Path, checkpoint: Path) -> Iterator[LocalCluster]:
    """One server with room for the models of all loads."""
    repository, room_bytes = folder / "models", 0
    for load in loads:
        add_model(repository, load.model, checkpoint, limits=load.limits)
        room_bytes += describe_checkpoint(checkpoint, load.limits).kv_cache_bytes
    with LocalCluster(folder, repository, servers=1, dram_bytes=DRAM_BYTES, device_memory_bytes=room_bytes) as cluster:
        yield cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRows:
    """Streams of a cluster's models, through its gateway or past it."""

    cluster: LocalCluster

    def address(self, way: str) -> str:
        return self.cluster.grpc if way == GATEWAY else self.cluster.triton_address()

    def headers(self, way: str) -> Mapping[str, str]:
        """What a server wants to be shown there."""
        return {} if way == GATEWAY else self.cluster.triton_headers()

    def wake(self, load: Load) -> None:
        """A tritonserver serves what the gateway had it load."""
        self.cluster.generate(load.model, "a", max_tokens=1)

    def measure(self, way: str, load: Load) -> Measurement:
        self.wake(load)
        task = task_of(load, self.address(way), tells_time=True, headers=self.headers(way))
        if way == GATEWAY:
            return measured_gateway(task, self.cluster.pid(SCHEDULER))
        return Measurement(figures=run_listener(task))


def relayed(load: Load, repository: Path, each: int) -> Measurement:
    """By a gateway before a repeater, with `each` tokens a message and as many messages whatever that is."""
    tokens = load.tokens * each
    with (
        child("perf.gateway.repeater", str(tokens), str(each)) as replica,
        child("perf.gateway.lone_gateway", str(repository), replica.address, environment=AS_THE_SCHEDULER) as gateway,
    ):
        task = task_of(load, gateway.address, tells_time=False, tokens=tokens)
        return measured_gateway(task, gateway.pid)


def task_of(
    load: Load, address: str, *, tells_time: bool, tokens: int | None = None, headers: Mapping[str, str] = NO_HEADERS
) -> Task:
    return Task(
        address=address,
        model=load.model,
        streams=load.streams,
        tokens=tokens or load.tokens,
        connections=MOST_CONNECTIONS,
        tells_time=tells_time,
        headers=dict(headers),
    )


def measured_gateway(task: Task, process: int) -> Measurement:
    """With what the gateway's process needed for it."""
    with watched(process) as usage:
        figures = run_listener(task)
    return Measurement(
        figures={
            **figures,
            "cpu_per_message_s": usage.cpu_s / figures["messages"],
            "gateway_bytes": usage.most_bytes,
            "grown_by_bytes": usage.most_bytes - usage.bytes_before,
        }
    )
