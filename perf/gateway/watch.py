"""What another process needed meanwhile: CPU time, and the most memory at any sample."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from perf import processes

SAMPLE_S = 0.1


@dataclass(slots=True, kw_only=True)
class Usage:
    """Complete when the watch is over. Bytes are resident ones, shared pages included."""

    bytes_before: int
    most_bytes: int
    cpu_s: float = 0.0


@contextmanager
def watched(process: int) -> Iterator[Usage]:
    """Its usage until the context ends."""
    bytes_before = processes.resident_bytes(process)
    usage, over = Usage(bytes_before=bytes_before, most_bytes=bytes_before), threading.Event()
    sampler = threading.Thread(target=_sample, args=(process, usage, over), daemon=True)
    cpu_before_s = processes.cpu_s([process])
    sampler.start()
    try:
        yield usage
        usage.cpu_s = processes.cpu_s([process]) - cpu_before_s
    finally:
        over.set()
        sampler.join()


def _sample(process: int, usage: Usage, over: threading.Event) -> None:
    while not over.wait(SAMPLE_S):
        usage.most_bytes = max(usage.most_bytes, processes.resident_bytes(process))
