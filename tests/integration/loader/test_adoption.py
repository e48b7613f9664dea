"""Daemons that are killed and stopped while clients have tensors: real processes, real signals."""

import contextlib
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

from serverless_triton.loader import ImageLeased, Store, StoreFull, StoreTimeout, StoreUnavailable
from serverless_triton.loader.arena_view import ArenaView
from serverless_triton.loader.replies import ArenaMapped, Attached, Reply
from serverless_triton.loader.store_link import StoreLink
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


def test_a_tensor_given_up_after_the_daemon_died_and_the_store_was_closed_is_released(
    daemon: Daemon, make_checkpoint: MakeCheckpoint
) -> None:
    with daemon.connect() as observer:
        store = daemon.connect()
        directory = make_checkpoint("second")
        first, second = store.attach(make_checkpoint("first")), store.attach(directory)
        store.close()
        kill(daemon)
        assert observer.status().leased_bytes > 0

        del first
        eventually(lambda: [image.leases for image in observer.status().images] == [0, 1])
        assert_same(second, directory)
        del second
        eventually(lambda: observer.status().leased_bytes == 0)


def test_a_tensor_given_up_by_a_session_that_asks_nothing_more_is_released(
    daemon: Daemon, make_checkpoint: MakeCheckpoint
) -> None:
    with daemon.connect() as observer, daemon.connect() as store:
        attachment = store.attach(make_checkpoint())
        kill(daemon)
        assert observer.status().leased_bytes > 0
        del attachment

        eventually(lambda: observer.status().leased_bytes == 0)


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


@pytest.mark.parametrize("last_answer", [ArenaMapped, Attached])
def test_a_first_attach_whose_daemon_dies_between_two_answers_has_its_lease(
    start_daemon: Callable[..., Daemon],
    make_checkpoint: MakeCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    last_answer: type[Reply],
) -> None:
    daemon = start_daemon(dram_bytes=16 * MEGABYTES)
    first, other = make_checkpoint("first", 9), make_checkpoint("other", 9)
    killings = [last_answer]
    wait = StoreLink.wait

    def wait_and_kill(self: StoreLink, *arguments: Any) -> tuple[Reply, list[int]]:
        reply, fds = wait(self, *arguments)
        if killings and isinstance(reply, killings[0]):
            killings.clear()
            kill(daemon)
        return reply, fds

    with daemon.connect() as store, daemon.connect() as filler:
        filler.load(other)
        monkeypatch.setattr(StoreLink, "wait", wait_and_kill)
        attachment = store.attach(first)
        assert killings == []
        with pytest.raises(StoreFull):
            filler.attach(other)
        assert_same(attachment, first)
        assert store.status().images[0].leases == 1


def test_a_lease_is_counted_before_another_thread_reconnects(
    daemon: Daemon, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_checkpoint()
    hold = ArenaView.hold
    with daemon.connect() as store:
        reconnecting = threading.Thread(target=store.status)

        def kill_and_hold(self: ArenaView, *arguments: Any) -> Any:
            kill(daemon)
            reconnecting.start()
            reconnecting.join(timeout=0.5)
            return hold(self, *arguments)

        monkeypatch.setattr(ArenaView, "hold", kill_and_hold)
        attachment = store.attach(directory)
        reconnecting.join(timeout=20)

        assert store.status().images[0].leases == 1
        assert_same(attachment, directory)


def test_a_daemon_may_be_killed_whenever_it_likes(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    # Room for two of the three and a bit: memory is used again and again, but never what somebody holds.
    daemon = start_daemon(dram_bytes=16 * MEGABYTES)
    directories = [make_checkpoint(f"m{i}", 6) for i in range(3)]
    expected = {path: official_load_file(path / "model.safetensors")["weight"] for path in directories}
    done = threading.Event()
    failures: list[str] = []
    attached: list[Path] = []

    def work(path: Path) -> None:
        held: list[torch.Tensor] = []
        with daemon.connect(timeout_s=2) as store:
            while not done.is_set():
                tensors: list[torch.Tensor] = []
                with contextlib.suppress(StoreUnavailable, StoreTimeout, StoreFull):
                    tensors.append(store.attach(path).tensors["weight"])
                    attached.append(path)
                # What was attached before was held meanwhile, whatever became of the daemon.
                failures.extend(str(path) for each in (*held, *tensors) if not torch.equal(each, expected[path]))
                held = tensors

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
    assert len(set(attached)) > 1


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
