"""The daemon as a process: its socket, its signals, and peers that do not keep to the protocol."""

import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serverless_triton.loader import CheckpointUnreadable, Store, StoreUnavailable
from serverless_triton.loader.link import MAX_REQUEST_BYTES, frame

Daemon = Any


def test_it_is_ready_soon_after_its_start(start_daemon: Callable[..., Daemon]) -> None:
    begin_s = time.monotonic()
    with start_daemon().connect() as store:
        store.status()

    assert time.monotonic() - begin_s < 2  # a fifth of a second on an idle machine


def test_its_socket_is_the_owner_s_alone(daemon: Daemon, store: Store) -> None:
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(daemon: Daemon, store: Store, number: int) -> None:
    store.status()
    daemon.process.send_signal(number)

    assert daemon.process.wait(timeout=20) == 0
    assert not daemon.socket.exists()
    log = daemon.log.read_text()
    assert 0 < log.find(f"serving socket={daemon.socket}") < log.find(f"stopped socket={daemon.socket}")
    with pytest.raises(StoreUnavailable):
        store.status()


def test_a_signal_ends_it_in_the_middle_of_a_load(
    start_daemon: Callable[..., Daemon], make_checkpoint: Callable[..., Path]
) -> None:
    daemon = start_daemon("--ssd-bytes-per-second", str(1 << 20))
    directory = make_checkpoint(megabytes=64)
    errors: list[Exception] = []

    def attach() -> None:
        try:
            waiting.attach(directory)
        except StoreUnavailable as error:
            errors.append(error)

    with daemon.connect() as waiting, daemon.connect() as store:
        waiter = threading.Thread(target=attach)
        waiter.start()
        while store.status().queue_depth == 0:
            time.sleep(0.01)
        assert daemon.stop() == 0
        waiter.join()
    assert "shutting down" in str(errors[0])


def test_a_second_store_at_the_same_socket_is_refused(daemon: Daemon, store: Store) -> None:
    store.status()
    command = [sys.executable, "-m", "serverless_triton.loader.daemon", "--dram-bytes", "1", "--socket"]
    done = subprocess.run([*command, str(daemon.socket)], capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 1
    assert "another store serves" in done.stderr
    store.status()


def test_the_socket_of_a_killed_store_is_taken_over(tmp_path: Path, start_daemon: Callable[..., Daemon]) -> None:
    first = start_daemon()
    with first.connect() as store:
        store.status()
    serving = first.child()
    first.process.kill()
    first.process.wait()
    while is_running(serving):
        time.sleep(0.01)
    assert first.socket.exists()
    command = [sys.executable, "-m", "serverless_triton.loader.daemon", "--dram-bytes", "1", "--socket"]
    second = subprocess.Popen([*command, str(first.socket)], stderr=subprocess.DEVNULL)
    try:
        with Store(first.socket, connect_timeout_s=20) as store:
            assert store.status().dram_bytes == 2 << 20  # the smallest arena
    finally:
        second.terminate()
        assert second.wait(timeout=20) == 0


def test_it_dies_with_its_parent_only_if_told(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'serverless_triton.loader.daemon', '--dram-bytes', '1',"
        " '--socket', sys.argv[1], *sys.argv[2:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "from serverless_triton.loader import Store\nStore(sys.argv[1], connect_timeout_s=20).status()\n"
        "print(child.pid)\n"
    )
    alone, bound = (
        int(subprocess.check_output([sys.executable, "-c", code, str(tmp_path / name), *options], timeout=60))
        for name, options in (("alone", []), ("bound", ["--die-with-parent"]))
    )
    deadline_s = time.monotonic() + 20
    while is_running(bound) and time.monotonic() < deadline_s:
        time.sleep(0.01)

    assert not is_running(bound)
    assert is_running(alone)
    os.kill(alone, signal.SIGTERM)


def is_running(pid: int) -> bool:
    """Until its last thread has ended: only then its sockets are closed."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    ended, _, _ = select.select([descriptor], [], [], 0)
    os.close(descriptor)
    return not ended


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", MAX_REQUEST_BYTES + 1),
        b"\xff" * 100,
        frame(b"not json"),
        frame(b'{"kind":"Attach","id":1}'),
        frame(b'{"kind":["Attach"],"id":1}'),
        frame(b"[" * 60_000),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_cut_off_and_nobody_else(daemon: Daemon, store: Store, data: bytes) -> None:
    store.status()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(os.fspath(daemon.socket))
        peer.sendall(data)
        assert peer.recv(100) == b""

    assert store.status().images == ()


@pytest.mark.parametrize("path", ["\\u0000", "\\ud800", "", "x" * 10_000, "/dev/zero", "/proc/self/mem"])
def test_an_absurd_path_is_answered(daemon: Daemon, store: Store, path: str) -> None:
    store.status()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(os.fspath(daemon.socket))
        peer.sendall(frame(b'{"kind":"Attach","id":1,"progress":false,"session":"s","path":"%b"}' % path.encode()))
        assert b'"Failed"' in peer.recv(100_000)

    assert store.status().images == ()


@pytest.mark.parametrize("ask", ["evict", "unpin"])
def test_what_can_be_no_file_s_name_cannot_be_let_go(daemon: Daemon, store: Store, ask: str) -> None:
    with pytest.raises(CheckpointUnreadable, match="File name too long"):
        getattr(store, ask)("/" + "x" * 10_000)

    assert "Traceback" not in daemon.log.read_text()


def test_a_peer_that_never_reads_is_cut_off(daemon: Daemon, store: Store) -> None:
    store.status()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(os.fspath(daemon.socket))
        request = frame(b'{"kind":"GetStatus","id":1}') * 1_000_000
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            peer.sendall(request)

    assert store.status().images == ()
