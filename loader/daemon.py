"""The store daemon as a process: configuration, the socket's place in the file system, signals.

    python -m serverless_triton.loader.daemon --socket PATH --dram-bytes N [--threads 4] [--ssd-bytes-per-second N]
        [--no-verify] [--metrics-port N]

One per node. It imports neither torch nor numpy, and outlives the workers that use its images.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import _core
from .errors import StoreError, StoreUnavailable
from .server import StoreServer

log = logging.getLogger("serverless_triton.store")

# sockaddr_un holds 108 bytes, the last of them a zero.
MAX_SOCKET_PATH_BYTES = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """`dram_bytes`: budget of all images together. `ssd_bytes_per_second`: limit of all reads together, 0 for none.
    `verify`: compare what is read with the hashes beside it, where there are some.
    `metrics_port`: of the loopback interface, for Prometheus; None for no metrics, 0 for any free port.

    Raises ValueError for values that cannot work.
    """

    socket_path: Path
    dram_bytes: int
    threads: int = 4
    ssd_bytes_per_second: int = 0
    verify: bool = True
    metrics_port: int | None = None
    die_with_parent: bool = False

    def __post_init__(self) -> None:
        if len(os.fsencode(self.socket_path)) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"socket path {self.socket_path} is longer than {MAX_SOCKET_PATH_BYTES} bytes; shorten it")
        if self.dram_bytes <= 0:
            raise ValueError(f"dram_bytes must be positive, not {self.dram_bytes}")
        if not 1 <= self.threads <= 256:
            raise ValueError(f"threads must be between 1 and 256, not {self.threads}")
        if self.ssd_bytes_per_second < 0:
            raise ValueError(f"ssd_bytes_per_second must be 0 (no limit) or more, not {self.ssd_bytes_per_second}")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise ValueError(f"metrics_port must be between 0 and 65535, not {self.metrics_port}")


def serve(config: StoreConfig) -> None:
    """Serves until SIGTERM or SIGINT. Raises StoreUnavailable where another store has this socket."""
    if config.die_with_parent:
        _core.die_with_parent()
    with ExitStack() as stack:
        listener = stack.enter_context(_listener_at(config.socket_path))
        server = StoreServer(
            listener,
            dram_bytes=config.dram_bytes,
            threads=config.threads,
            bytes_per_second=config.ssd_bytes_per_second,
            verify=config.verify,
        )
        if config.metrics_port is not None:
            stack.enter_context(_metrics_of(server, config.metrics_port))
        stack.enter_context(_stopped_by_signals(server))
        server.run()


@contextmanager
def _metrics_of(server: StoreServer, port: int) -> Iterator[None]:
    # Only a store that is asked for metrics pays for importing the library.
    from .exporter import metrics_served

    with metrics_served(port, server.snapshot) as bound_port:
        log.info("metrics at http://127.0.0.1:%d/metrics", bound_port)
        yield


@contextmanager
def _listener_at(path: Path) -> Iterator[socket.socket]:
    with _exclusive(path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)  # of a store that was killed: the lock says that none is alive
        previous_umask = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(previous_umask)
        listener.listen(128)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file beside the socket. It stays when the store goes: unlinking it would race with the next."""
    with open(f"{path}.lock", "w", opener=_open_private) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise StoreUnavailable(f"another store serves {path}; stop it first or choose another socket") from error
        yield


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


@contextmanager
def _stopped_by_signals(server: StoreServer) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, lambda *_: server.stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def parse_arguments(arguments: Sequence[str] | None = None) -> StoreConfig:
    """The configuration a command line asks for; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m serverless_triton.loader.daemon", description="The store daemon.")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to serve, created with mode 0600")
    parser.add_argument("--dram-bytes", type=int, required=True, help="budget of all images together")
    parser.add_argument("--threads", type=int, default=4, help="reading threads of a load")
    parser.add_argument("--ssd-bytes-per-second", type=int, default=0, help="limit of all reads together; 0: none")
    parser.add_argument("--no-verify", action="store_true", help="leave the hashes beside checkpoints alone")
    parser.add_argument("--metrics-port", type=int, help="serve Prometheus metrics on 127.0.0.1; 0: any free port")
    parser.add_argument("--die-with-parent", action="store_true", help="get SIGTERM when the parent process exits")
    options = parser.parse_args(arguments)
    try:
        return StoreConfig(
            socket_path=options.socket,
            dram_bytes=options.dram_bytes,
            threads=options.threads,
            ssd_bytes_per_second=options.ssd_bytes_per_second,
            verify=not options.no_verify,
            metrics_port=options.metrics_port,
            die_with_parent=options.die_with_parent,
        )
    except ValueError as error:
        parser.error(str(error))


def main() -> int:
    config = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        serve(config)
    except StoreError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
