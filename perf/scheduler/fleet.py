"""Four nodes on one machine and their models, brought back to the same beginning for every policy (decision 14).

Each node has its own agent, store, arena and throttled SSD, so what is near one is far from another. A beginning is: no
replica, no parked stub, a scheduler that has learned nothing, and in every node's DRAM its share of the models.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import yaml

from perf.harness import BenchmarkFailed
from serverless_triton.backend import agent_pb2, agent_pb2_grpc
from serverless_triton.backend.model_repository import EngineLimits, add_model, describe_checkpoint
from serverless_triton.cli.local_cluster import LocalCluster

SCHEDULER = "scheduler"  # the supervised process
DEFAULT_POLICY = "startup_time"
WAIT_S = 60.0
LOOK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSpec:
    """`models_in_dram` and `models_on_device` are how many each node has room for."""

    nodes: int = 4
    models: int = 24
    models_in_dram: int = 5
    models_on_device: int = 2
    ssd_bytes_per_second: int = 64 << 20
    limits: EngineLimits
    timeout_s: float = 20.0  # of a wait for a place

    @property
    def names(self) -> tuple[str, ...]:
        """Most popular first."""
        return tuple(f"model-{number:02}" for number in range(self.models))


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node's agent."""

    agent: agent_pb2_grpc.NodeAgentStub
    metadata: tuple[tuple[str, str], ...]

    def state(self) -> agent_pb2.NodeState:
        """As it is now."""
        news = self.agent.Watch(agent_pb2.WatchRequest(), timeout=WAIT_S, metadata=self.metadata)
        state: agent_pb2.NodeState = next(iter(news))
        news.cancel()
        return state

    def evict_all(self) -> None:
        state = self.state()
        held = [*(one.checkpoint for one in state.images), *(one.checkpoint for one in state.transfers)]
        for checkpoint in held:
            request = agent_pb2.EvictRequest(epoch=state.highest_epoch, checkpoint=checkpoint)
            self.agent.Evict(request, timeout=WAIT_S, metadata=self.metadata)

    def prefetch(self, checkpoint: str) -> None:
        request = agent_pb2.PrefetchRequest(epoch=self.state().highest_epoch, checkpoint=checkpoint)
        self.agent.Prefetch(request, timeout=WAIT_S, metadata=self.metadata)


class Fleet:
    """A running cluster whose policy changes."""

    def __init__(
        self, cluster: LocalCluster, nodes: Sequence[Node], checkpoints: Sequence[str], spec: FleetSpec
    ) -> None:
        self.cluster = cluster
        self._nodes = nodes
        self._checkpoints = checkpoints
        self._spec = spec
        self._beginnings = 0

    def begin_anew(self, policy: str) -> None:
        """Raises BenchmarkFailed where a node does not let go of what it has."""
        self._unload_all()
        self._restart_scheduler(policy)
        for node in self._nodes:
            node.evict_all()
        shares = [self._checkpoints[number :: len(self._nodes)] for number in range(len(self._nodes))]
        with ThreadPoolExecutor(len(self._nodes)) as pool:
            list(pool.map(self._fill, self._nodes, shares))

    def _fill(self, node: Node, checkpoints: Sequence[str]) -> None:
        """The most popular of its share last: what was used last goes last."""
        for checkpoint in reversed(checkpoints[: self._spec.models_in_dram]):
            node.prefetch(checkpoint)

    def _unload_all(self) -> None:
        connection = HTTPConnection("127.0.0.1", self.cluster.http_port, timeout=WAIT_S)
        for model in self._spec.names:
            connection.request("POST", f"/v2/repository/models/{model}/unload")
            answer = connection.getresponse()
            said = answer.read().decode()
            if answer.status != 200:
                raise BenchmarkFailed(f"{model} could not be unloaded: {said}")
        connection.close()
        _until(lambda: not any(node.state().replicas for node in self._nodes), "every replica is gone")

    def _restart_scheduler(self, policy: str) -> None:
        """With a state of its own: what one policy has learned is not the next one's."""
        self._beginnings += 1
        file = self.cluster.run_directory() / "scheduler.yaml"
        config: dict[str, Any] = yaml.safe_load(file.read_text())
        config["control"].pop("policy", None)
        if policy != DEFAULT_POLICY:
            config["control"]["policy"] = policy
        if "state" in config:
            config["state"]["path"] = str(file.with_name(f"state-{self._beginnings}.sqlite"))
        file.write_text(yaml.safe_dump(config))
        before = self.cluster.pid(SCHEDULER)
        self.cluster.kill(before, signal.SIGTERM)
        _until(lambda: self._scheduler_pid() not in (None, before), "the scheduler is started again")
        _until(lambda: self.cluster.servers_up() == self._spec.nodes, f"the scheduler is back, with policy {policy}")

    def _scheduler_pid(self) -> int | None:
        """None in the moment in which its file is being written."""
        try:
            return self.cluster.pid(SCHEDULER)
        except ValueError:
            return None


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise BenchmarkFailed(f"not within {WAIT_S:.0f} s: {what}")
        time.sleep(LOOK_AGAIN_S)


@contextmanager
def fleet(spec: FleetSpec, folder: Path, write_checkpoint: Callable[[Path, int], None]) -> Iterator[Fleet]:
    """`write_checkpoint` makes a Hugging Face directory; the number tells models apart."""
    checkpoints = [folder / "checkpoints" / name for name in spec.names]
    for number, (name, checkpoint) in enumerate(zip(spec.names, checkpoints, strict=True)):
        write_checkpoint(checkpoint, number)
        add_model(folder / "models", name, checkpoint, limits=spec.limits)
    one = describe_checkpoint(checkpoints[0], spec.limits)
    with ExitStack() as stack:
        cluster = stack.enter_context(
            LocalCluster(
                folder,
                folder / "models",
                servers=spec.nodes,
                # A stream may be preempted as often as a policy likes: that is no failure of its replicas.
                relay={"admission_timeout_s": spec.timeout_s, "max_deaths": 1000},
                device_memory_bytes=one.device_bytes * spec.models_on_device + one.device_bytes // 2,
                dram_bytes=_arena_bytes(one.checkpoint_bytes) * spec.models_in_dram,
                ssd_bytes_per_second=spec.ssd_bytes_per_second,
            )
        )
        channels = [stack.enter_context(grpc.insecure_channel(cluster.agent_address(n))) for n in range(spec.nodes)]
        metadata = cluster.agent_metadata()
        nodes = [Node(agent=agent_pb2_grpc.NodeAgentStub(channel), metadata=metadata) for channel in channels]
        yield Fleet(cluster, nodes, [str(checkpoint) for checkpoint in checkpoints], spec)


def _arena_bytes(checkpoint_bytes: int) -> int:
    """What an image takes at most: its bytes in pages of 2 MB, and the header's."""
    return -(-checkpoint_bytes // (2 << 20)) * (2 << 20) + (2 << 20)
