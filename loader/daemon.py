"""The store as processes: what they share, the socket's place in the file system, signals.

    python -m serverless_triton.loader.daemon --socket PATH [--dram-bytes N] [--pages auto] [--threads 4] ...

One store per node, of two processes: the holder (holder.py) makes the arena, the listening socket and the state slots;
the daemon, forked from it, serves. They import neither torch nor numpy, and outlive the workers that use the images.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from . import _core
from .errors import PagesUnavailable, SocketUnusable, StoreError, StoreFull, StoreUnavailable
from .holder import Startup, hold
from .host_settings import configure_host, hugetlb_shortage
from .loading import ImageLoader
from .lock_file import open_lock_file
from .memory_limits import DramBudget, dram_budget, read_memory_limits
from .remote.ssd_cache import SsdCache
from .remote_tier import RemoteTier
from .server import StoreParts, StoreServer
from .state_slots import StateSlots
from .store_config import Pages, StoreConfig, parse_arguments

log = logging.getLogger("serverless_triton.store")

# For a daemon that is just dying, because its holder did.
LOCK_TIMEOUT_S = 2.0
LOCK_POLL_S = 0.01


def serve(config: StoreConfig) -> None:
    """Serves until SIGTERM or SIGINT; for the only thread of a process.

    Raises StoreUnavailable where another store has this socket, SocketUnusable where none can be made, BudgetTooLarge,
    PagesUnavailable, StoreFull and HostNotConfigurable where there is no such memory.
    """
    if config.die_with_parent:
        _core.die_with_parent(signal.SIGTERM)
    with _listener_at(config.socket_path) as listener:
        arena = _create_arena(config)
        hold(partial(_serve_clients, config, listener, arena, StateSlots.create()))


def _create_arena(config: StoreConfig) -> _core.Arena:
    limits = read_memory_limits()
    if config.pages == "auto":
        # Where hugetlb pages do not suffice, the arena is memory that counts, and so its budget is decided again.
        with suppress(PagesUnavailable):
            return _arena_within(config, dram_budget(config.dram_bytes, limits, hugetlb=True), "hugetlb")
        return _arena_within(config, dram_budget(config.dram_bytes, limits, hugetlb=False), "auto")
    budget = dram_budget(config.dram_bytes, limits, hugetlb=config.pages == "hugetlb")
    try:
        return _arena_within(config, budget, config.pages)
    except PagesUnavailable as error:
        if config.pages != "hugetlb":
            raise
        raise PagesUnavailable(f"{error}. {hugetlb_shortage(budget.bytes)}") from error


def _arena_within(config: StoreConfig, budget: DramBudget, pages: Pages) -> _core.Arena:
    """Raises PagesUnavailable, StoreFull and HostNotConfigurable."""
    if config.configure_host:
        for change in configure_host(pages, budget.bytes):
            log.warning("machine setting changed file=%s old=%s new=%s", change.file, change.old, change.new)
    arena = _arena_of(budget.bytes, pages)
    level = logging.WARNING if budget.exceeds_available else logging.INFO
    log.log(level, "budget bytes=%d: %s", budget.bytes, budget.reason)
    nodes = arena.interleaved_nodes
    log.info("arena bytes=%d kind=%s page_bytes=%d nodes=%s", arena.bytes, arena.kind, arena.page_bytes, nodes)
    return arena


def _arena_of(size_bytes: int, pages: Pages) -> _core.Arena:
    """Raises PagesUnavailable, and StoreFull in words of the command line."""
    try:
        return _core.Arena(size_bytes, pages)
    except StoreFull as error:
        raise StoreFull(f"{error} (--dram-bytes, now {size_bytes})") from error


def _serve_clients(
    config: StoreConfig, listener: socket.socket, arena: _core.Arena, slots: StateSlots, startup: Startup
) -> None:
    """The daemon's life. Raises StoreError for what it cannot start with.

    A restart does without what it could not get, a cache or metrics, for the sake of those who have leases.
    """
    with ExitStack() as stack:
        remote = _remote_tier(config, arena, startup)
        stack.callback(remote.close)
        server = StoreServer(
            StoreParts(
                listener=listener,
                arena=arena,
                slots=slots,
                loader=remote,
                opener=remote,
                ssd_cache=lambda: remote.cache_status,
                throttles=config.throttles,
                gpu_bytes=config.gpu_bytes,
                prefault=config.prefault,
            )
        )
        if config.metrics_port is not None:
            with _optional(startup, "metrics"):
                stack.enter_context(_metrics_of(server, config.metrics_port))
        stack.enter_context(_stopped_by_signals(server))
        startup.succeeded()
        log.info("serving socket=%s", config.socket_path)
        server.run()
    log.info("stopped socket=%s", config.socket_path)


@contextmanager
def _optional(startup: Startup, what: str) -> Iterator[None]:
    """What a restarted store can do without."""
    try:
        yield
    except StoreError as error:
        if not startup.is_restart:
            raise
        log.error("the restarted store runs without %s: %s", what, error)


def _remote_tier(config: StoreConfig, arena: _core.Arena, startup: Startup) -> RemoteTier:
    cache: SsdCache | None = None
    if config.cache_dir:
        with _optional(startup, "its SSD cache"):
            cache = SsdCache(config.cache_dir, config.cache_bytes)
    reader = _core.Reader(threads=config.threads, bytes_per_second=config.ssd_bytes_per_second)
    return RemoteTier(
        local=ImageLoader(arena=arena, reader=reader, verify=config.verify),
        copies=ImageLoader(arena=arena, reader=reader, verify=True),
        arena=arena,
        verify=config.verify,
        cache=cache,
        bytes_per_second=config.remote_bytes_per_second,
    )


@contextmanager
def _metrics_of(server: StoreServer, port: int) -> Iterator[None]:
    # Only a store that is asked for metrics pays for importing the library.
    from .exporter import metrics_served

    with metrics_served(port, server.snapshot) as bound_port:
        log.info("metrics at http://127.0.0.1:%d/metrics", bound_port)
        yield


@contextmanager
def _listener_at(path: Path) -> Iterator[socket.socket]:
    with ExitStack() as stack:
        with _as_unusable(path):
            _check_is_free(path)  # before the lock, which would leave its file beside somebody's checkpoint
            stack.enter_context(_exclusive(path))
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            _bind(listener, path)
        try:
            yield listener
        finally:
            if _is_socket(path):
                path.unlink(missing_ok=True)


def _bind(listener: socket.socket, path: Path) -> None:
    _check_is_free(path)
    path.unlink(missing_ok=True)  # of a store that was killed: the lock says that none is alive
    previous_umask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(previous_umask)
    listener.listen(128)


def _check_is_free(path: Path) -> None:
    if os.path.lexists(path) and not _is_socket(path):
        raise SocketUnusable(f"{path} exists and is no socket; choose another path")


def _is_socket(path: Path) -> bool:
    return not path.is_symlink() and path.is_socket()


@contextmanager
def _as_unusable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SocketUnusable(
                f"cannot lock {error.filename}: it is a symbolic link; remove it, or choose another --socket"
            ) from error
        raise SocketUnusable(
            f"cannot make a socket in {path.absolute().parent}: {error}; see that this directory is there and writable "
            "for this user, or choose another --socket"
        ) from error


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file beside the socket. It stays when the store goes: unlinking it would race with the next."""
    with open_lock_file(Path(f"{path}.lock")) as lock:
        deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        while not _is_locked(lock.fileno()):
            if time.monotonic() > deadline_s:
                raise StoreUnavailable(f"another store serves {path}; stop it first or choose another socket")
            time.sleep(LOCK_POLL_S)
        yield


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


@contextmanager
def _stopped_by_signals(server: StoreServer) -> Iterator[None]:
    previous = {number: signal.signal(number, lambda *_: server.stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
