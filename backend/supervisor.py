"""Supervises the processes of a run: starts them, restarts one that dies, ends all of them, leaves nothing behind.

Each process has its own session, so Ctrl-C in a terminal reaches only the supervisor, and its own log file. What must
be true after any end (no process, no /dev/shm file, no run directory) is the sentinel's work, which starts first and
ends last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serverless_triton.backend.processes import die_with_parent
from serverless_triton.backend.sentinel import RUN_VARIABLE, remove_shared_memory

logger = logging.getLogger(__name__)

GRACE_S = 5.0
SENTINEL_TIMEOUT_S = 20.0
FIRST_RESTART_S = 0.1
LAST_RESTART_S = 5.0
STEADY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process to keep running. `shm_prefix` names what it may leave in /dev/shm when it dies."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    shm_prefix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run's identity: an id in its processes' environment, a prefix in /dev/shm, a short-pathed private folder."""

    id: str
    directory: Path

    @property
    def shm_prefix(self) -> str:
        return f"st-{self.id}-"

    @classmethod
    @contextlib.contextmanager
    def create(cls) -> Iterator[Run]:
        """Its directory is 0700 and goes with the context; sockets in it need a short path."""
        run = cls(id=secrets.token_hex(4), directory=Path(tempfile.mkdtemp(prefix="st-")))
        try:
            yield run
        finally:
            shutil.rmtree(run.directory, ignore_errors=True)


class Supervisor:
    """Runs the specs until asked to stop. `logs` gets a file per process, and outlives the run."""

    def __init__(self, run: Run, specs: Sequence[ProcessSpec], logs: Path) -> None:
        self._run = run
        self._specs = specs
        self._logs = logs
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`; then everything has ended and is cleaned up."""
        self._logs.mkdir(parents=True, exist_ok=True)
        sentinel = self._start_sentinel()
        keepers = [asyncio.ensure_future(self._keep(spec)) for spec in self._specs]
        try:
            await asyncio.wait({asyncio.ensure_future(self._stopping.wait()), *keepers}, return_when="FIRST_COMPLETED")
        finally:
            self._stopping.set()
            await self._end_all(keepers)
            await _finish(sentinel)
        for keeper in keepers:
            keeper.result()

    def _start_sentinel(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "serverless_triton.backend.sentinel"]
        return subprocess.Popen(
            [*command, self._run.id, self._run.shm_prefix, str(self._run.directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    async def _keep(self, spec: ProcessSpec) -> None:
        """Start it again whenever it dies, at once at first, more and more slowly when it keeps dying."""
        pause_s = FIRST_RESTART_S
        while not self._stopping.is_set():
            started_s = asyncio.get_running_loop().time()
            status = await self._run_once(spec)
            if self._stopping.is_set():
                return
            lived_s = asyncio.get_running_loop().time() - started_s
            pause_s = FIRST_RESTART_S if lived_s > STEADY_S else min(2 * pause_s, LAST_RESTART_S)
            logger.warning("process_died name=%s status=%s restart_in_s=%.1f", spec.name, status, pause_s)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def _run_once(self, spec: ProcessSpec) -> int:
        supervisor = os.getpid()
        with (self._logs / f"{spec.name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *spec.command,
                env={**os.environ, **spec.environment, RUN_VARIABLE: self._run.id},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(supervisor, signal.SIGTERM),
            )
        self._processes[spec.name] = process
        self._tell_pid(spec.name, process.pid)
        status = await process.wait()
        _kill_group(process.pid)
        if spec.shm_prefix is not None:
            remove_shared_memory(spec.shm_prefix)
        return status

    def _tell_pid(self, name: str, pid: int) -> None:
        """In one step: who reads the file meanwhile finds the one before."""
        file = self._run.directory / f"{name}.pid"
        written = file.with_suffix(".pid.new")
        written.write_text(f"{pid}\n")
        written.replace(file)

    async def _end_all(self, keepers: Sequence[asyncio.Future[None]]) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        _, late = await asyncio.wait(keepers, timeout=GRACE_S)
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if late:
            await asyncio.wait(late, timeout=GRACE_S)


def _kill_group(group: int) -> None:
    """A dead server's stubs are of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


async def _finish(sentinel: subprocess.Popen[bytes]) -> None:
    """Closing its input starts it."""
    assert sentinel.stdin is not None
    sentinel.stdin.close()
    await asyncio.get_running_loop().run_in_executor(None, sentinel.wait, SENTINEL_TIMEOUT_S)
