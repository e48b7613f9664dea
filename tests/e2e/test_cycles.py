"""Loaded, parked, woken and unloaded, again and again: nothing is left. `make test-cycles` takes a thousand cycles."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton_grpc

from serverless_triton.backend import agent_pb2, agent_pb2_grpc
from serverless_triton.backend.processes import private_bytes
from serverless_triton.backend.sentinel import SHARED_MEMORY, processes_of
from serverless_triton.cli.local_cluster import LocalCluster
from serverless_triton.loader import Store
from tests.e2e.conftest import DRAM_BYTES, ROOM_FOR_ONE

MODELS = ("alpha", "beta")
WAIT_S = 10.0
CYCLES = int(os.environ.get("CYCLES", "20"))
TURNS = CYCLES // len(MODELS)  # each takes every model through a cycle
WARM_UP_TURNS = 3
PROCESSES = ("server-0.store", "server-0.zygote", "server-0.agent", "server-0.triton", "scheduler")
# What processes may keep for themselves: allocators, Triton's own caches, and 16 KB a turn for the receipts of 1,000
# streams that the scheduler keeps. A leak of a stub's or worker's is far more.
SLACK_DESCRIPTORS = 4
SLACK_BYTES = (8 << 20) + TURNS * (16 << 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the cluster holds, by process where it matters. Bytes are private to it."""

    pids: Mapping[str, int]
    processes: int
    shared_memory_files: int
    descriptors: Mapping[str, int]
    private_bytes: Mapping[str, int]


@pytest.fixture
def cluster(repository: Path, tmp_path: Path) -> Iterator[LocalCluster]:
    """One server with room for one replica."""
    with LocalCluster(
        tmp_path, repository, servers=1, device_memory_bytes=ROOM_FOR_ONE, dram_bytes=DRAM_BYTES
    ) as running:
        yield running


def test_cycles_of_load_park_wake_and_unload_leave_nothing(cluster: LocalCluster) -> None:
    for _ in range(WARM_UP_TURNS):
        take_turn(cluster)
    before = usage(cluster)
    cluster.until(lambda: all(leases == 0 for _, _, leases in images(cluster)), "no weights leased")
    kept = images(cluster)
    for _ in range(TURNS):
        take_turn(cluster)
    cluster.until(lambda: usage(cluster).processes == before.processes, "as many processes as before")
    cluster.until(lambda: usage(cluster).shared_memory_files == before.shared_memory_files, "as many shm segments")
    cluster.until(lambda: granted_bytes(cluster) == 0, "no device memory granted")
    cluster.until(lambda: images(cluster) == kept, "the images as before, and nobody's lease on them")
    after = usage(cluster)
    assert after.pids == before.pids, "a process died, and what it had leaked with it"
    for name in PROCESSES:
        assert after.descriptors[name] <= before.descriptors[name] + SLACK_DESCRIPTORS, name
        assert after.private_bytes[name] <= before.private_bytes[name] + SLACK_BYTES, name


def take_turn(cluster: LocalCluster) -> None:
    """Both models are loaded, each is parked once and woken once, and both are unloaded."""
    kinds = [kind_of_start(cluster, model) for model in (*MODELS, *MODELS)]
    assert kinds == ["cold", "cold", "parked", "parked"]
    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        for model in MODELS:
            client.unload_model(model)
    with triton_grpc.InferenceServerClient(cluster.triton_address()) as triton:
        headers = cluster.triton_headers()
        cluster.until(lambda: not any(is_in(triton, model, headers) for model in MODELS), "Triton has unloaded both")


def kind_of_start(cluster: LocalCluster, model: str) -> str:
    heard = cluster.generate(model, "Hello", max_tokens=1)
    assert heard.errors == []
    cluster.until(lambda: len(cluster.replicas()) == 1, "the other one has left")
    kind: str = cluster.get(f"/v2/cluster/receipts/{heard.stream_id}")["receipts"][0]["kind"]
    return kind


def is_in(triton: triton_grpc.InferenceServerClient, model: str, headers: dict[str, str]) -> bool:
    index = triton.get_model_repository_index(headers=headers).models
    return any(entry.name == model and entry.state != "UNAVAILABLE" for entry in index)


def usage(cluster: LocalCluster) -> Usage:
    pids = {name: cluster.pid(name) for name in PROCESSES}
    return Usage(
        pids=pids,
        processes=len(list(processes_of(cluster.run_id()))),
        shared_memory_files=len(list(SHARED_MEMORY.glob(f"{cluster.shm_prefix()}*"))),
        descriptors={name: len(list(Path(f"/proc/{pid}/fd").iterdir())) for name, pid in pids.items()},
        private_bytes={name: private_bytes(pid) for name, pid in pids.items()},
    )


def granted_bytes(cluster: LocalCluster) -> int:
    """Of device memory, by the agent."""
    with grpc.insecure_channel(cluster.agent_address()) as agent:
        watch, metadata = agent_pb2_grpc.NodeAgentStub(agent).Watch, cluster.agent_metadata()
        states = watch(agent_pb2.WatchRequest(), timeout=WAIT_S, metadata=metadata)
        return int(next(iter(states)).device_granted_bytes)


def images(cluster: LocalCluster) -> list[tuple[str, int, int]]:
    """What the store holds in its arena: path, bytes and leases of each image."""
    with Store(cluster.run_directory() / "server-0.store", timeout_s=WAIT_S) as store:
        return sorted((str(image.path), image.bytes, image.leases) for image in store.status().images)
