"""Long work on files with somebody watching: the work runs beside, its progress is told from the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from . import _core

# progress(bytes_done, bytes_total): called a few times a second, and once at the end.
Progress = Callable[[int, int], None]
Result = TypeVar("Result")

TICK_S = 0.1


def watched(work: Callable[[_core.ReadJob], Result], total_bytes: int, progress: Progress | None) -> Result:
    """work(job), and meanwhile progress(job.bytes_done, total_bytes). Whatever `progress` raises cancels the work."""
    job = _core.ReadJob()
    if progress is None:
        return work(job)
    with ThreadPoolExecutor(1, "loader-work") as pool:
        future = pool.submit(work, job)
        try:
            while not wait([future], TICK_S).done:
                progress(job.bytes_done, total_bytes)
        except BaseException:
            job.cancel()
            raise
        result = future.result()
    progress(total_bytes, total_bytes)
    return result
