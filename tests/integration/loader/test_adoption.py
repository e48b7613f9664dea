"""Daemons that are killed and stopped while clients have tensors: real processes, real signals."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as official_load_file

from serverless_triton.loader import ImageLeased, Store, StoreTimeout, StoreUnavailable
from tests.integration.loader.test_store import assert_same, eventually

MEGABYTES = 1 << 20
MakeCheckpoint = Callable[..., Path]
Daemon = Any


def kill(daemon: Daemon) -> None:
    """The process that serves; its holder starts the next."""
    eventually(lambda: daemon.child() != 0)
    child = daemon.child()
    assert child > 1  # anything less is a group of processes to kill()
    os.kill(child, signal.SIGKILL)
    eventually(lambda: daemon.child() not in (0, child))


def test_tensors_leases_and_images_outlive_the_daemon(daemon: Daemon, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    with daemon.connect() as store, daemon.connect() as other:
        attachment = store.attach(directory)
        kill(daemon)

        assert_same(attachment, directory)
        with pytest.raises(ImageLeased):
            other.evict(directory)
        assert other.status().images[0].orphaned_leases == 1
        assert store.status().images[0].orphaned_leases == 0
        assert store.attach(directory).receipt.tier == "dram"
        assert daemon.loads_started() == 1
        del attachment
        assert store.evict(directory) == 1


def test_a_tensor_given_up_while_no_daemon_answers_is_released_at_the_next(
    daemon: Daemon, make_checkpoint: MakeCheckpoint
) -> None:
    directory = make_checkpoint()
    with daemon.connect() as store:
        first, second = store.attach(directory), store.attach(directory)
        kill(daemon)
        del first
        assert store.status().images[0].leases == 1
        assert_same(second, directory)


def test_a_client_that_does_not_come_back_holds_its_lease_until_it_ends(
    daemon: Daemon, make_checkpoint: MakeCheckpoint, start_client: Callable[..., "subprocess.Popen[str]"]
) -> None:
    directory = make_checkpoint()
    client = start_client(daemon, directory)
    assert client.stdout is not None
    client.stdout.readline()
    kill(daemon)
    with daemon.connect() as store:
        with pytest.raises(ImageLeased):
            store.evict(directory)
        client.kill()
        client.wait()

        eventually(lambda: store.status().leased_bytes == 0)
        assert store.evict(directory) == 1


def test_a_request_in_flight_fails_and_the_next_is_answered(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    daemon = start_daemon("--ssd-bytes-per-second", str(32 * MEGABYTES))
    small, large = make_checkpoint("small", 1), make_checkpoint("large", 64)
    with daemon.connect() as store, daemon.connect() as observer:
        attachment = store.attach(small)
        killer = threading.Thread(target=lambda: (eventually(lambda: observer.status().queue_depth == 1), kill(daemon)))
        killer.start()
        with pytest.raises(StoreUnavailable, match="ask again"):
            store.attach(large)
        killer.join()

        status = store.status()
        assert [image.path for image in status.images] == [str(small)]
        assert status.used_bytes < 2 * MEGABYTES  # what was being loaded is free again
        assert_same(attachment, small)


def test_a_daemon_may_be_killed_whenever_it_likes(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    daemon = start_daemon(dram_bytes=64 * MEGABYTES)
    directories = [make_checkpoint(f"m{i}", 6) for i in range(3)]
    expected = {path: official_load_file(path / "model.safetensors")["weight"] for path in directories}
    done = threading.Event()
    failures: list[str] = []

    def work(path: Path) -> None:
        with daemon.connect() as store:
            while not done.is_set():
                try:
                    tensor = store.attach(path).tensors["weight"]
                except StoreUnavailable:
                    continue
                if not torch.equal(tensor, expected[path]):
                    failures.append(str(path))

    workers = [threading.Thread(target=work, args=(path,)) for path in directories]
    for worker in workers:
        worker.start()
    for pause_s in (0.3, 0.05, 0.2):
        done.wait(pause_s)
        kill(daemon)
    done.wait(0.2)
    done.set()
    for worker in workers:
        worker.join()

    assert failures == []


def test_a_stopped_daemon_costs_a_timeout_and_no_lease(daemon: Daemon, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    with daemon.connect() as store:
        attachment = store.attach(directory)
        child = daemon.child()
        assert child > 1
        os.kill(child, signal.SIGSTOP)
        try:
            with pytest.raises(StoreTimeout):
                store.status(timeout_s=0.1)
            assert_same(attachment, directory)
        finally:
            os.kill(child, signal.SIGCONT)

        assert store.status().images[0].leases == 1
        with pytest.raises(ImageLeased):
            store.evict(directory)


def test_a_new_store_at_the_old_socket_is_another_arena(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    first = start_daemon()
    directory = make_checkpoint()
    with first.connect() as store:
        before = store.attach(directory)
        first.stop()
        second = start_daemon()
        first.socket.symlink_to(second.socket)
        with Store(second.socket, connect_timeout_s=20) as probe:
            assert probe.status().images == ()

        after = store.attach(directory)
        assert after.receipt.tier != "dram"
        assert_same(before, directory)
        assert_same(after, directory)
        del before
        assert store.status().images[0].leases == 1
