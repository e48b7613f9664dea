"""One limit on the bandwidth of all remote loads of a store, by pacing. Pure; time comes in.

Nodes that share a machine are throttled so that they behave like several (DESIGN.md, decision 14).
"""

from __future__ import annotations

import threading

BURST_S = 0.1


class Throttle:
    """`bytes_per_second` 0 is no limit. Any thread may call it."""

    def __init__(self, bytes_per_second: int) -> None:
        self._bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._paid_until_s = 0.0

    def take(self, size_bytes: int, now_s: float) -> float:
        """Accounts for bytes that arrived; returns for how long to read no more."""
        if not self._bytes_per_second:
            return 0.0
        with self._lock:
            self._paid_until_s = max(self._paid_until_s, now_s - BURST_S) + size_bytes / self._bytes_per_second
            return max(0.0, self._paid_until_s - now_s)
