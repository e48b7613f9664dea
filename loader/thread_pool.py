"""Threads whose end is waited for up to a deadline: what blocks, a hung mount say, may block for good."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait


class ThreadPool:
    """For one thread, but for the work itself."""

    def __init__(self, max_threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_threads, name)
        self._unfinished: set[Future[None]] = set()

    def submit(self, work: Callable[..., None], *arguments: object) -> None:
        future = self._pool.submit(work, *arguments)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)

    def close(self, deadline_s: float) -> int:
        """Begins nothing more, and waits for what runs until `deadline_s` of time.monotonic(): how much still does."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        return len(wait(set(self._unfinished), max(0.0, deadline_s - time.monotonic())).not_done)
