"""Which process a client is, so that a lease can outlive its connection but never its process.

A pid alone may be used again; together with the time its process started it names one process for good.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

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
    """The process that has this pid now."""
    return ProcessId(pid=pid, start_time=_start_time(pid))


def open_process(process: ProcessId) -> int | None:
    """A pidfd, readable once the process has ended; None where it has, or cannot be watched."""
    if process.pid == UNKNOWN_PID or not process.start_time:
        return None
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return None
    # Looked at while the pidfd holds on to whoever has the pid: it cannot pass to another process in between.
    if _start_time(process.pid) != process.start_time:
        os.close(descriptor)
        return None
    return descriptor


def _start_time(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return int(fields[_START_TIME])
