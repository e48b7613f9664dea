"""Until when a client waits for an answer: a time in all, or a time in which nothing gets nearer."""

from __future__ import annotations

import time
from collections.abc import Callable

from .replies import Progress

MOST_TIMEOUT_S = 2_000_000.0  # 23 days: poll() takes no more milliseconds


def check_timeout(timeout_s: float, name: str = "timeout_s") -> None:
    """Raises TypeError, ValueError."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise TypeError(f"{name} is {timeout_s!r}; give a number of seconds")
    if not 0 <= timeout_s <= MOST_TIMEOUT_S:
        raise ValueError(f"{name} is {timeout_s!r}; give a number of seconds from 0 to {MOST_TIMEOUT_S:.0f}")


class Deadline:
    """`timeout_s` seconds from now; with `of_standstill`, from the last news that something had been read.

    Raises TypeError, ValueError for what is no such time.
    """

    def __init__(
        self, timeout_s: float, *, of_standstill: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        check_timeout(timeout_s)
        self._timeout_s = timeout_s
        self._of_standstill = of_standstill
        self._clock = clock
        self._ends_at_s = clock() + timeout_s
        self._was_at: tuple[int, int] | None = None

    @property
    def left_s(self) -> float:
        return max(0.0, self._ends_at_s - self._clock())

    def hear(self, news: Progress) -> None:
        """How far the answer is; news that are no other than the last do not count."""
        is_at = (news.bytes_done, news.bytes_ahead)
        if self._of_standstill and is_at != self._was_at:
            self._was_at = is_at
            self._ends_at_s = self._clock() + self._timeout_s

    def __str__(self) -> str:
        """What became of the answer when nothing is left."""
        missed = "stood still for" if self._of_standstill else "took longer than"
        return f"{missed} {self._timeout_s:g} s"
