"""Clients and daemons that are killed at moments that nobody chose: what they held is free again, all of it."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serverless_triton.loader import ImageLeased, Store, StoreUnavailable
from serverless_triton.loader.store_status import StoreStatus
from tests.integration.loader.test_store import eventually

MEGABYTES = 1 << 20
Daemon = Any
MakeCheckpoint = Callable[..., Path]

# Forks clients that attach, release and drop what they find, and kills each after a moment; prints how many it killed.
CLIENTS = """
import os, random, signal, sys, time
import torch
from safetensors.torch import load_file as official_load_file
from serverless_triton.loader import Store, StoreError
socket, seed, rounds, *paths = sys.argv[1:]
chance = random.Random(int(seed))
expected = {path: official_load_file(path + "/model.safetensors")["weight"] for path in paths}
torch.set_num_threads(1)  # the children of fork() have no other threads

def check(path, attachment):
    if not torch.equal(attachment.tensors["weight"], expected[path]):
        print("wrong bytes of", path, flush=True)

def use_the_store(chance):
    with Store(socket, connect_timeout_s=20) as store:
        held = []
        while True:
            try:
                path = chance.choice(paths)
                held.append((path, store.attach(path)))
                for each in held:
                    check(*each)
                if chance.random() < 0.5:
                    store.release(held.pop(0)[1])
                store.prefetch(chance.choice(paths))
            except StoreError:
                held.clear()

for round in range(int(rounds)):
    child = os.fork()
    if child == 0:
        try:
            use_the_store(random.Random(round))
        finally:
            os._exit(1)
    time.sleep(chance.uniform(0.0, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print("killed", rounds)
"""


def kill_clients(daemon: Daemon, paths: list[Path], *, seed: int, rounds: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CLIENTS, str(daemon.socket), str(seed), str(rounds), *map(str, paths)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def is_at_rest(status: StoreStatus) -> bool:
    return status.queue_depth == 0 and status.leased_bytes == 0


def is_evicted(store: Store, path: Path) -> bool:
    try:
        store.evict(path)
    except ImageLeased:
        return False
    return True


def assert_everything_can_be_had(store: Store, paths: list[Path]) -> None:
    for path in paths:
        eventually(lambda path=path: is_evicted(store, path))
    eventually(lambda: is_at_rest(store.status()))
    status = store.status()
    assert (status.images, status.used_bytes) == ((), 0)
    assert status.arena.free_bytes + status.arena.quarantined_bytes == status.dram_bytes


@pytest.mark.parametrize("seed", [1, 2])
def test_clients_killed_at_any_moment_leave_nothing_behind(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint, seed: int
) -> None:
    daemon = start_daemon(dram_bytes=32 * MEGABYTES)
    paths = [make_checkpoint(f"m{i}", 3 + 4 * i) for i in range(4)]
    clients = kill_clients(daemon, paths, seed=seed, rounds=25)

    assert clients.communicate(timeout=120)[0] == "killed 25\n"

    with daemon.connect() as store:
        assert_everything_can_be_had(store, paths)


def test_clients_and_daemons_killed_at_any_moment_leave_nothing_behind(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    daemon = start_daemon(dram_bytes=32 * MEGABYTES)
    paths = [make_checkpoint(f"m{i}", 3 + 4 * i) for i in range(4)]
    with daemon.connect() as store:
        store.load(paths[0])
    clients = kill_clients(daemon, paths, seed=3, rounds=40)
    chance, pause = random.Random(4), threading.Event()
    for _ in range(8):
        pause.wait(chance.uniform(0.1, 0.6))
        child = daemon.child()
        if child:
            os.kill(child, signal.SIGKILL)
        eventually(lambda child=child: daemon.child() not in (0, child))

    assert clients.communicate(timeout=120)[0] == "killed 40\n"
    with daemon.connect() as store:
        assert_everything_can_be_had(store, paths)


def test_a_client_that_waits_while_the_daemon_is_killed_is_told_and_served_by_the_next(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    daemon = start_daemon("--ssd-bytes-per-second", str(8 * MEGABYTES))
    first, second = make_checkpoint("first", 32), make_checkpoint("second", 2)
    failures: list[StoreUnavailable] = []

    def wait_in_line() -> None:
        try:
            waiting.attach(second)
        except StoreUnavailable as error:
            failures.append(error)

    with daemon.connect() as waiting, daemon.connect() as store:
        store.prefetch(first)
        waiter = threading.Thread(target=wait_in_line)
        waiter.start()
        eventually(lambda: store.status().queue_depth == 2)
        os.kill(daemon.child(), signal.SIGKILL)
        waiter.join(timeout=20)

        assert len(failures) == 1
        assert waiting.attach(second).receipt.bytes > 2 * MEGABYTES
