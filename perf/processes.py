"""What the kernel knows of a process: CPU time, memory, children."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

PROC = Path("/proc")


def cpu_s(processes: Iterable[int]) -> float:
    """User and system time since their start, threads that ended included; anybody may read another's CPU clock."""
    return sum(time.clock_gettime(~process << 3 | 2) for process in processes)


def descendants(process: int) -> Iterator[int]:
    for children in (PROC / str(process) / "task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            yield child
            yield from descendants(child)


def peak_bytes() -> int:
    """The largest resident set of this process since reset_peak(), shared pages included."""
    return _kilobytes(PROC / "self" / "status", "VmHWM")


def reset_peak() -> None:
    (PROC / "self" / "clear_refs").write_text("5\n")


def private_bytes(process: int) -> int:
    return _kilobytes(PROC / str(process) / "status", "RssAnon")


def resident_bytes(process: int) -> int:
    """Shared pages included."""
    return _kilobytes(PROC / str(process) / "status", "VmRSS")


def available_bytes() -> int:
    """What the machine could give without swapping."""
    return _kilobytes(PROC / "meminfo", "MemAvailable")


def _kilobytes(file: Path, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    assert match, f"{file} has no {name}"
    return int(match[1]) * 1024
