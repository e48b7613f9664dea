"""A node without Triton: a real store, zygote, agent and workers; the test is the stub."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import torch
from safetensors.torch import save_file

from serverless_triton.backend import agent_pb2, agent_pb2_grpc
from serverless_triton.backend.channel import Channel, ChannelClosed
from serverless_triton.backend.messages import Acquire, Generate, Granted, Message, Tokens
from serverless_triton.backend.node import ZYGOTE_ENVIRONMENT
from serverless_triton.loader import Store

WAIT_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weights for an engine that looks at none."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    save_file({"weight": torch.zeros(1 << 16)}, directory / "model.safetensors")
    return directory


@pytest.fixture
def parameters(checkpoint: Path) -> dict[str, str]:
    """Of a model whose streams last as long as a test wants."""
    return {
        "checkpoint": str(checkpoint),
        "checkpoint_bytes": "262144",
        "kv_cache_bytes": "1024",
        "engine": "fake",
        "max_sequence_tokens": "100000000",
    }


def end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(WAIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


class Processes:
    """Children that end with the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, *command], stderr=log, stdout=log, env={**os.environ, **ZYGOTE_ENVIRONMENT}
            )
        self._children.append(child)
        return child

    def socket(self, name: str) -> Path:
        return self.directory / name

    def start_store(self) -> Path:
        store = self.socket("store")
        self.start("store", "-m", "serverless_triton.loader.daemon", "--socket", str(store), "--dram-bytes", "67108864")
        return store

    def stop(self) -> None:
        for child in reversed(self._children):
            child.send_signal(signal.SIGTERM)
        for child in self._children:
            end(child)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    children = Processes(tmp_path)
    yield children
    children.stop()


class Watcher:
    """What the agent tells its scheduler."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._heard = threading.Condition()
        self._state = agent_pb2.NodeState()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        agent = agent_pb2_grpc.NodeAgentStub(self._channel)
        try:
            for state in agent.Watch(agent_pb2.WatchRequest(), wait_for_ready=True):
                with self._heard:
                    self._state = state
                    self._heard.notify_all()
        except grpc.RpcError:
            return  # the test is over

    def until(self, condition: Callable[[agent_pb2.NodeState], bool]) -> agent_pb2.NodeState:
        with self._heard:
            assert self._heard.wait_for(lambda: condition(self._state), WAIT_S), self._state
            return self._state

    def worker_of(self, model: str, other_than: int = 0) -> int:
        """Its process id, once there is one; a parked stub has none, and one that died may still be shown."""

        def workers(state: agent_pb2.NodeState) -> list[int]:
            return [r.worker_pid for r in state.replicas if r.model == model and r.worker_pid not in (0, other_than)]

        return workers(self.until(lambda state: bool(workers(state))))[0]

    def close(self) -> None:
        self._channel.close()
        self._thread.join(WAIT_S)


class HandStub:
    """Triton's stub of one model, in this process: what it hears of each request is kept."""

    def __init__(self, agent_socket: Path, model: str, parameters: dict[str, str]) -> None:
        self._agent = Channel.connect(str(agent_socket), WAIT_S)
        self._agent.set_timeout(WAIT_S)
        self._agent.send(Acquire(model=model, parameters=parameters))
        answer, descriptors = self._agent.receive()
        assert isinstance(answer, Granted), answer
        self.worker = Channel.adopt(descriptors[0])
        self.ended_s: float | None = None
        self._heard = threading.Condition()
        self._positions: dict[int, int] = {}
        self._next = 0
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            while True:
                self._note(self.worker.receive()[0])
        except (ChannelClosed, OSError):  # OSError where `close` came between two messages
            with self._heard:
                self.ended_s = time.monotonic()
                self._heard.notify_all()

    def _note(self, message: Message) -> None:
        if not isinstance(message, Tokens):
            return
        with self._heard:
            assert message.first_position == self._positions[message.request], "a token was lost or came twice"
            self._positions[message.request] += len(message.output_ids)
            self._heard.notify_all()

    def ask(self, max_tokens: int) -> int:
        self._next += 1
        self._positions[self._next] = 0
        sampling = {"max_tokens": max_tokens, "ignore_eos": True}
        self.worker.send(Generate(request=self._next, text="Once", sampling_parameters=sampling))
        return self._next

    def position(self, request: int) -> int:
        with self._heard:
            return self._positions[request]

    def until(self, request: int, position: int) -> None:
        with self._heard:
            assert self._heard.wait_for(lambda: self._positions[request] >= position, WAIT_S)

    def until_ended(self) -> float:
        with self._heard:
            assert self._heard.wait_for(lambda: self.ended_s is not None, WAIT_S)
            assert self.ended_s is not None
            return self.ended_s

    def close(self) -> None:
        self.worker.close()
        self._agent.close()
        self._thread.join(WAIT_S)


@dataclass
class Node:
    """The running node, as its scheduler and its Triton see it."""

    agent_socket: Path
    watcher: Watcher
    stubs: list[HandStub]
    zygote: subprocess.Popen[bytes]
    start_zygote: Callable[[], subprocess.Popen[bytes]]

    def stub(self, model: str, parameters: dict[str, str]) -> HandStub:
        self.stubs.append(HandStub(self.agent_socket, model, parameters))
        return self.stubs[-1]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """No models, unless a test puts some there before it asks for a node."""
    repository = tmp_path / "models"
    repository.mkdir()
    return repository


@pytest.fixture
def node(processes: Processes, repository: Path) -> Iterator[Node]:
    store, zygote, agent = processes.start_store(), processes.socket("zygote"), processes.socket("agent")
    address = f"127.0.0.1:{free_port()}"

    def start_zygote() -> subprocess.Popen[bytes]:
        sockets = ("--agent-socket", str(agent), "--store-socket", str(store))
        return processes.start("zygote", "-m", "serverless_triton.backend.zygote", "--socket", str(zygote), *sockets)

    first_zygote = start_zygote()
    options = ("--model-repository", str(repository), "--device-memory-bytes", "1000000", "--spare-workers", "2")
    sockets = ("--socket", str(agent), "--zygote-socket", str(zygote), "--store-socket", str(store))
    name = ("--node", "node", "--grpc-address", address)
    processes.start("agent", "-m", "serverless_triton.backend.agent_server", *sockets, *name, *options)
    watcher = Watcher(address)
    watcher.until(lambda state: state.workers_ready)
    node = Node(agent, watcher, [], first_zygote, start_zygote)
    yield node
    for stub in node.stubs:
        stub.close()
    watcher.close()


def leases(store_socket: Path) -> int:
    with Store(store_socket, timeout_s=WAIT_S, connect_timeout_s=WAIT_S) as store:
        return sum(image.leases for image in store.status().images)
