"""Our store in processes of its own, as `store serve` runs it: started, watched until its arena is whole, ended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perf import machine, processes
from perf.harness import BenchmarkFailed
from serverless_triton.loader import Store, StoreStatus

START_TIMEOUT_S, PREFAULT_TIMEOUT_S, STOP_TIMEOUT_S = 30.0, 300.0, 20.0
TICK_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreProcess:
    """A store whose arena is whole. `listening_s` and `prefaulted_s` count from its start."""

    socket: Path
    root: int
    pages: str
    page_bytes: int
    arena_bytes: int
    listening_s: float
    prefaulted_s: float

    def connect(self) -> Store:
        return Store(self.socket)

    def processes(self) -> tuple[int, ...]:
        """Holder and daemon."""
        return (self.root, *processes.descendants(self.root))

    def cpu_s(self) -> float:
        return processes.cpu_s(self.processes())


@contextmanager
def running_store(
    folder: Path, *, pages: str, dram_bytes: int, more_options: Sequence[str] = ()
) -> Iterator[StoreProcess]:
    """Yields once every page was touched. Raises BenchmarkFailed where that does not come to pass."""
    folder.mkdir(parents=True, exist_ok=True)
    socket, log = folder / "store", folder / "store.log"
    options = ["--socket", str(socket), "--dram-bytes", str(dram_bytes), "--pages", pages, *more_options]
    begin_s = time.perf_counter()
    with log.open("wb") as opened:
        command = [sys.executable, "-m", "serverless_triton.cli", "store", "serve", *options]
        process = subprocess.Popen(command, cwd=machine.ROOT, stdout=opened, stderr=opened)
    try:
        yield _once_prefaulted(process, socket, log, begin_s)
    finally:
        _end(process)


def _once_prefaulted(process: subprocess.Popen[bytes], socket: Path, log: Path, begin_s: float) -> StoreProcess:
    with Store(socket, connect_timeout_s=START_TIMEOUT_S) as store:
        status = store.status()
        listening_s = time.perf_counter() - begin_s
        while status.arena.prefaulted_bytes < status.dram_bytes:
            if process.poll() is not None or time.perf_counter() - begin_s > PREFAULT_TIMEOUT_S:
                raise BenchmarkFailed(f"the store did not come up; its log: {log.read_text()[-2000:]}")
            time.sleep(TICK_S)
            status = store.status()
    return _store_process(process.pid, socket, status, listening_s, time.perf_counter() - begin_s)


def _store_process(
    root: int, socket: Path, status: StoreStatus, listening_s: float, prefaulted_s: float
) -> StoreProcess:
    return StoreProcess(
        socket=socket,
        root=root,
        pages=status.arena.kind,
        page_bytes=status.arena.page_bytes,
        arena_bytes=status.dram_bytes,
        listening_s=listening_s,
        prefaulted_s=prefaulted_s,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
