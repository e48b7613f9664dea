"""Two schedulers and an etcd of three members: whoever leads decides, every gateway serves, and faults of any of them
show to no client but as a pause.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
import yaml

from serverless_triton.backend import agent_pb2, agent_pb2_grpc, triton_control_pb2, triton_control_pb2_grpc
from serverless_triton.cli.cluster import free_ports
from serverless_triton.cli.local_cluster import LocalCluster
from serverless_triton.cli.stream_client import GrpcStream, Heard
from tests.e2e.conftest import DRAM_BYTES, ROOM_FOR_ONE
from tests.etcd_cluster import EtcdCluster

pytestmark = pytest.mark.slow

PROMPT = "Once upon a time, in a small harbour town,"
LEASE_S = 2
PATIENCE_S = 30.0


@dataclass
class Scheduler:
    """One of the two: its process, its gateway's ports, and the address by which the other reaches it."""

    pid: int
    http_port: int
    grpc_port: int
    address: str

    def status(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=15)
        try:
            connection.request("GET", "/v2/cluster/status")
            status: dict[str, Any] = json.loads(connection.getresponse().read())
            return status
        finally:
            connection.close()

    def unload(self, model: str) -> int:
        """The answer's status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=60)
        try:
            connection.request("POST", f"/v2/repository/models/{model}/unload", body="{}")
            return connection.getresponse().status
        finally:
            connection.close()

    def stream(self, model: str, **sampling: Any) -> GrpcStream:
        return GrpcStream(f"127.0.0.1:{self.grpc_port}", model, PROMPT, ignore_eos=True, **sampling)


@dataclass
class Pair:
    cluster: LocalCluster
    etcd: EtcdCluster
    schedulers: tuple[Scheduler, Scheduler]
    log: Path

    def leader(self) -> Scheduler:
        """By the log: whoever was last to say that it leads."""
        lines = [
            line for log in (self.cluster.logs / "scheduler.log", self.log) for line in log.read_text().splitlines()
        ]
        led = [(epoch_of(line), line.rpartition("address=")[2].strip()) for line in lines if "leads epoch=" in line]
        _, address = max(led)
        return next(one for one in self.schedulers if one.address == address)

    def other(self, than: Scheduler) -> Scheduler:
        return next(one for one in self.schedulers if one is not than)


def replicas_of(scheduler: Scheduler, model: str) -> list[str]:
    return [r["id"] for s in scheduler.status()["servers"] for r in s["replicas"] if r["model"] == model]


def epoch_of(line: str) -> int:
    return int(line.partition("leads epoch=")[2].split()[0])


def until(condition: Callable[[], object], what: str) -> None:
    ends_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends_s, f"not in time: {what}"
        time.sleep(0.05)


def sees_servers(scheduler: Scheduler) -> bool:
    try:
        return sum(server["takes_starts"] for server in scheduler.status()["servers"]) == 2
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return False


@pytest.fixture(scope="module")
def pair(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("schedulers")
    ports = free_ports(5)
    addresses = [f"127.0.0.1:{port}" for port in ports[:2]]
    with EtcdCluster(folder) as etcd:
        state = {"kind": "etcd", "endpoints": list(etcd.endpoints), "lease_s": LEASE_S, "address": addresses[0]}
        budgets: dict[str, Any] = {"device_memory_bytes": ROOM_FOR_ONE, "dram_bytes": DRAM_BYTES}
        with LocalCluster(folder, repository, state=state, **budgets) as cluster:
            config = yaml.safe_load((cluster.run_directory() / "scheduler.yaml").read_text())
            config["state"]["address"] = addresses[1]
            config["gateway"].update(http_port=ports[2], grpc_port=ports[3], metrics_port=ports[4])
            file, log = folder / "second.yaml", folder / "second.log"
            file.write_text(yaml.safe_dump(config))
            command = [sys.executable, "-m", "serverless_triton.scheduler", "--config", str(file)]
            with log.open("wb") as written:
                second = subprocess.Popen(command, stdout=written, stderr=written)
            try:
                yield Pair(
                    cluster,
                    etcd,
                    (
                        Scheduler(cluster.pid("scheduler"), cluster.http_port, cluster.grpc_port, addresses[0]),
                        Scheduler(second.pid, ports[2], ports[3], addresses[1]),
                    ),
                    log,
                )
            finally:
                second.send_signal(signal.SIGCONT)
                second.terminate()
                second.wait(timeout=30)


@pytest.fixture
def settled(pair: Pair) -> Pair:
    """Both serve, and nothing runs."""
    pair.etcd.start()
    for scheduler in pair.schedulers:
        until(lambda scheduler=scheduler: sees_servers(scheduler), "both schedulers know the servers")
    return pair


def heard_of(stream: GrpcStream) -> tuple[Thread, list[Heard]]:
    """The rest of a stream, read beside the test."""
    heard: list[Heard] = []
    thread = Thread(target=lambda: heard.append(stream.rest()))
    thread.start()
    return thread, heard


def test_a_model_that_is_asked_for_at_two_gateways_is_started_once(settled: Pair) -> None:
    streams = [scheduler.stream("alpha", max_tokens=24) for scheduler in settled.schedulers]
    answers = [stream.rest() for stream in streams]
    assert [answer.errors for answer in answers] == [[], []]
    assert answers[0].output_ids == answers[1].output_ids
    statuses = [scheduler.status() for scheduler in settled.schedulers]
    replicas = [
        [r["id"] for s in status["servers"] for r in s["replicas"] if r["model"] == "alpha"] for status in statuses
    ]
    assert replicas[0] == replicas[1]
    assert len(replicas[0]) == 1


def test_a_stream_of_the_follower_goes_on_over_its_replicas_death(settled: Pair) -> None:
    follower = settled.other(settled.leader())
    expected = follower.stream("alpha", max_tokens=64).rest()
    stream = follower.stream("alpha", max_tokens=64)
    stream.read(10)
    (replica,) = [r for s in follower.status()["servers"] for r in s["replicas"] if r["streams"]]
    os.kill(replica["worker_pid"], signal.SIGKILL)
    heard = stream.rest()
    assert heard.errors == []
    assert heard.output_ids == expected.output_ids


def test_streams_go_on_and_decisions_wait_while_etcd_is_gone_for_ten_seconds(settled: Pair) -> None:
    leader = settled.leader()
    running = leader.stream("alpha", max_tokens=400)
    running.read(5)
    settled.etcd.kill()
    gone_s = time.monotonic()
    time.sleep(LEASE_S)  # from now on nobody may decide
    waits, waited = heard_of(leader.stream("beta", max_tokens=4))
    before = running.read(5)
    assert before is None or before
    time.sleep(max(0.0, gone_s + 10.0 - time.monotonic()))
    assert waited == []
    settled.etcd.start()
    waits.join(PATIENCE_S)
    assert [heard.errors for heard in waited] == [[]]
    assert running.rest().errors == []


def test_the_next_leader_goes_on_where_a_leader_is_stopped_in_the_middle_of_a_load_and_its_late_effects_are_refused(
    settled: Pair,
) -> None:
    """Past its lease; the client is the follower's, and notices nothing but a pause."""
    leader = settled.leader()
    follower = settled.other(leader)
    held = follower.stream("alpha", max_tokens=300)
    held.read(5)
    epoch = leader.status()["epoch"]
    waits, waited = heard_of(follower.stream("gamma", max_tokens=4))
    until(lambda: replicas_of(leader, "gamma"), "the load is under way, or over")
    os.kill(leader.pid, signal.SIGSTOP)
    try:
        until(lambda: settled.leader() is follower, "the other leads")
        waits.join(PATIENCE_S)
        assert [heard.errors for heard in waited] == [[]]
        assert held.rest().errors == []
        assert_refuses(settled.cluster, epoch)
    finally:
        os.kill(leader.pid, signal.SIGCONT)
    until(lambda: sees_servers(leader), "the stopped one follows")
    assert settled.leader() is follower
    replicas = [r["model"] for s in follower.status()["servers"] for r in s["replicas"]]
    assert sorted(replicas) == sorted(set(replicas))
    assert leader.stream("gamma", max_tokens=4).rest().errors == []


def assert_refuses(cluster: LocalCluster, epoch: int) -> None:
    """Each server's agent, whatever comes with this epoch now."""
    for number in range(2):
        with grpc.insecure_channel(cluster.agent_address(number)) as channel:
            control, agent = triton_control_pb2_grpc.TritonControlStub(channel), agent_pb2_grpc.NodeAgentStub(channel)
            for method, request in (
                (control.Load, triton_control_pb2.LoadRequest(epoch=epoch, model="gamma")),
                (control.Unload, triton_control_pb2.UnloadRequest(epoch=epoch, model="gamma")),
                (agent.Start, agent_pb2.StartRequest(epoch=epoch, replica="late", model="gamma")),
                (agent.Release, agent_pb2.ReleaseRequest(epoch=epoch, replica="late")),
                (agent.Park, agent_pb2.ParkRequest(epoch=epoch, replica="late")),
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    method(request, timeout=10, metadata=cluster.agent_metadata())
                assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                assert f"epoch {epoch} is over" in refused.value.details()


def test_an_unload_in_the_middle_of_which_the_leader_is_stopped_is_done_by_the_next(settled: Pair) -> None:
    leader = settled.leader()
    follower = settled.other(leader)
    assert follower.stream("alpha", max_tokens=2).rest().errors == []
    epoch, statuses = leader.status()["epoch"], []
    unloading = Thread(target=lambda: statuses.append(follower.unload("alpha")))
    unloading.start()
    os.kill(leader.pid, signal.SIGSTOP)
    try:
        until(lambda: settled.leader() is follower, "the other leads")
        unloading.join(PATIENCE_S)
        assert statuses == [200]
        assert replicas_of(follower, "alpha") == []
        assert_refuses(settled.cluster, epoch)
    finally:
        os.kill(leader.pid, signal.SIGCONT)
    until(lambda: sees_servers(leader), "the stopped one follows")
    assert replicas_of(leader, "alpha") == []
    assert leader.stream("alpha", max_tokens=2).rest().errors == []


def test_a_leader_that_ends_is_followed_at_once_and_waiting_requests_are_asked_again(settled: Pair) -> None:
    leader = settled.leader()
    follower = settled.other(leader)
    streams = [heard_of(follower.stream(model, max_tokens=8)) for model in ("alpha", "beta", "delta")]
    settled.etcd.leader().kill()
    os.kill(leader.pid, signal.SIGSTOP)
    time.sleep(LEASE_S * 2)
    os.kill(leader.pid, signal.SIGCONT)
    for thread, heard in streams:
        thread.join(60)
        assert [one.errors for one in heard] == [[]]
