"""A hundred workers of one zygote, alive together, each with threads of its own: the test is their agent."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_triton.backend.channel import Channel
from serverless_triton.backend.messages import Fork, Load, Loaded, Retire, WorkerHello
from serverless_triton.backend.processes import ProcessHandle
from tests.integration.node.conftest import WAIT_S, Processes, leases

WORKERS = 100


class Worker:
    """The agent's view of one."""

    def __init__(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.process = ProcessHandle(struct.unpack("3i", credentials)[0])
        self.channel = Channel(connection)
        self.channel.set_timeout(WAIT_S)
        assert self.channel.receive()[0] == WorkerHello()

    def close(self) -> None:
        self.channel.close()
        self.process.close()


@pytest.fixture
def agent(processes: Processes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(processes.socket("agent")))
        listener.listen(WORKERS)
        listener.settimeout(WAIT_S)
        yield listener


@pytest.fixture
def zygote(processes: Processes, agent: socket.socket) -> Iterator[Channel]:
    script = str(Path(__file__).with_name("matmul_zygote.py"))
    place = processes.socket("zygote")
    sockets = ("--agent-socket", str(processes.socket("agent")), "--store-socket", str(processes.start_store()))
    processes.start("zygote", script, "--socket", str(place), *sockets)
    channel = connect(place)
    yield channel
    channel.close()


def connect(place: Path) -> Channel:
    """The zygote listens once it has imported torch."""
    deadline_s = time.monotonic() + WAIT_S
    while (channel := try_to_connect(place)) is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return channel


def try_to_connect(place: Path) -> Channel | None:
    try:
        return Channel.connect(str(place), WAIT_S)
    except OSError:
        return None


def test_none_of_a_hundred_hangs_and_every_lease_ends_with_its_owner(
    zygote: Channel, agent: socket.socket, processes: Processes, parameters: dict[str, str]
):
    with contextlib.ExitStack() as stack:
        workers = []
        for _ in range(WORKERS):
            zygote.send(Fork())
            workers.append(Worker(agent.accept()[0]))
            stack.callback(workers[-1].close)
        load = Load(replica="r", model="m", parameters={**parameters, "engine": "matmul", "threads": "2"})
        for worker in workers:
            worker.channel.send(load)
        for worker in workers:
            answer, _ = worker.channel.receive()
            assert isinstance(answer, Loaded), answer
        assert leases(processes.socket("store")) == WORKERS

        for number, worker in enumerate(workers):
            if number % 2:
                worker.channel.send(Retire())
            else:
                worker.process.kill()

        until_no_lease(processes.socket("store"))
        assert all(select.select([worker.process], [], [], WAIT_S)[0] for worker in workers)  # readable by its end


def until_no_lease(store: Path) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while left := leases(store):
        assert time.monotonic() < deadline_s, f"{left} leases outlived their workers"
        time.sleep(0.05)
