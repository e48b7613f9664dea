"""Notices that something which is done again and again takes too long once: a read, a write.

One timer for all of it, which looks when the limit may have passed: beginning and ending cost an attribute each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class StallTimer:
    """Calls `late` once what was begun last has not ended for `limit_s` seconds. Made in a running event loop."""

    def __init__(self, limit_s: float, late: Callable[[], None]) -> None:
        self._limit_s = limit_s
        self._late = late
        self._since_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(limit_s, self._look)

    def begin(self) -> None:
        self._since_s = self._loop.time()

    def end(self) -> None:
        self._since_s = None

    def stop(self) -> None:
        """Nothing is late any more."""
        self._timer.cancel()

    def _look(self) -> None:
        now_s = self._loop.time()
        due_s = (now_s if self._since_s is None else self._since_s) + self._limit_s
        if due_s <= now_s:
            self._late()
        else:
            self._timer = self._loop.call_at(due_s, self._look)
