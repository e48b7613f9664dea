"""Which process a client is, so that a lease can outlive its connection but never its process.

A pid alone may be used again; together with the time its process started it names one process for good.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import ProcessUnwatchable

# A pid of 0 is what the kernel says of a peer in another pid namespace.
UNKNOWN_PID = 0
# Of /proc/PID/stat, counted behind the command's closing parenthesis.
_START_TIME = 19


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """`start_time` in clock ticks since boot, 0 where the process was gone before it could be asked."""

    pid: int
    start_time: int


def process_of(pid: int) -> ProcessId:
    """The process that has this pid now. Raises ProcessUnwatchable where it lives and its end could not be seen."""
    if pid == UNKNOWN_PID:
        raise ProcessUnwatchable(
            "this process is in a pid namespace that the store cannot see into, so its leases could not end with it; "
            "share the store's (docker run --pid=container:STORE or --pid=host; hostPID or shareProcessNamespace in "
            "Kubernetes)"
        )
    process = ProcessId(pid=pid, start_time=_start_time(pid))
    if not process.start_time and _is_alive(pid):
        raise ProcessUnwatchable(
            f"the store's /proc does not show this process (pid {pid}), so its leases could not end with it; mount the "
            "/proc of the store's own pid namespace there, without hidepid"
        )
    return process


def open_process(process: ProcessId) -> int | None:
    """A pidfd, readable once the process has ended; None where it has. Raises OSError where that cannot be said now."""
    if not process.start_time:
        return None
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    try:
        # Looked at while the pidfd holds on to whoever has the pid: it cannot pass to another process in between.
        is_same = _start_time(process.pid) == process.start_time
    except OSError:
        os.close(descriptor)
        raise
    if is_same:
        return descriptor
    os.close(descriptor)
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _start_time(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[_START_TIME])
