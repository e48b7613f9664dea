"""Real store daemons and real clients, each a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serverless_triton.loader import Store


class Daemon:
    """A store daemon in a child process."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.socket = directory / "store"
        self.log = directory / "store.log"
        command = [sys.executable, "-m", "serverless_triton.loader.daemon", "--socket", str(self.socket), *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log)

    def connect(self, timeout_s: float = 60.0) -> Store:
        return Store(self.socket, timeout_s=timeout_s, connect_timeout_s=20)

    def loads_started(self) -> int:
        return self.log.read_text().count("load started")

    def child(self) -> int:
        """The process that serves, of the two that a store is; 0 while there is none."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """start_daemon(*options) starts a store; all of them are killed at the end, whatever happened."""
    daemons: list[Daemon] = []

    def start(*options: str, dram_bytes: int = 256 << 20) -> Daemon:
        directory = tmp_path / f"daemon{len(daemons)}"
        directory.mkdir()
        daemons.append(Daemon(directory, "--dram-bytes", str(dram_bytes), *options))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.process.kill()
        daemon.process.wait(timeout=20)


@pytest.fixture
def daemon(start_daemon: Callable[..., Daemon]) -> Daemon:
    return start_daemon()


@pytest.fixture
def store(daemon: Daemon) -> Iterator[Store]:
    with daemon.connect() as store:
        yield store


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """make_checkpoint(name, megabytes) writes one model.safetensors of random bytes and returns its directory."""

    def make(name: str = "model", megabytes: int = 4) -> Path:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        tensors = {
            "weight": torch.randint(0, 255, (megabytes << 20,), dtype=torch.uint8),
            "bias": torch.rand(33, dtype=torch.float32).to(torch.bfloat16),
            "scalar": torch.tensor(3.5),
        }
        save_file(tensors, directory / "model.safetensors")
        return directory

    return make


@pytest.fixture
def start_client() -> Iterator[Callable[[Daemon, Path], "subprocess.Popen[str]"]]:
    """start_client(daemon, path) runs a process that attaches, prints READY and stays."""
    code = (
        "import sys\nfrom serverless_triton.loader import Store\n"
        "store = Store(sys.argv[1], connect_timeout_s=20)\nattachment = store.attach(sys.argv[2])\n"
        "print('READY', attachment.receipt.tier, flush=True)\nsys.stdin.read()\n"
    )
    clients: list[subprocess.Popen[str]] = []

    def start(daemon: Daemon, path: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", code, str(daemon.socket), str(path)]
        clients.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy())
        )
        return clients[-1]

    yield start
    for client in clients:
        with contextlib.suppress(OSError):
            client.kill()
        client.communicate(timeout=20)
