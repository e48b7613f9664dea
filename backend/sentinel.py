"""The sentinel: cleans up after a supervisor, however that one ends.

It waits for its standard input to close, which the kernel does also for a supervisor that was SIGKILLed. Then it kills
every process that carries the run's id in its environment (servers, their stubs, forked workers: all inherit it), and
removes the run's files in /dev/shm and its run directory. Standard library only; it is started with `python -S`-like
cost and must never fail to start.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

RUN_VARIABLE = "SERVERLESS_TRITON_RUN"
SHARED_MEMORY = Path("/dev/shm")
PATIENCE_S = 10.0
POLL_S = 0.02


def processes_of(run: str) -> Iterator[int]:
    """The processes whose environment at their start named the run, this one left out."""
    mark = f"{RUN_VARIABLE}={run}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue  # it ended, or is another user's
        if mark in environment.split(b"\0"):
            yield int(entry.name)


def remove_shared_memory(prefix: str) -> None:
    """What Triton leaves in /dev/shm when it, or a stub, is killed."""
    for file in SHARED_MEMORY.glob(f"{prefix}*"):
        file.unlink(missing_ok=True)


def clean_up(run: str, prefix: str, directory: Path) -> None:
    """Kill, wait until all are gone, remove. Raises nothing that would keep the rest from being removed."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (remaining := list(processes_of(run))) and time.monotonic() < deadline_s:
        for pid in remaining:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
    remove_shared_memory(prefix)
    shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    run, prefix, directory = sys.argv[1:4]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clean_up(run, prefix, Path(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
