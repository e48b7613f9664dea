"""When a daemon that died is started again. Pure."""

from __future__ import annotations

FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 2.0
# Who lived that long did not die of its start.
STEADY_S = 10.0
MAX_QUICK_DEATHS = 20


class Restarts:
    """Counts deaths in a row: the first restart is at once, later ones more and more slowly, and at last none."""

    def __init__(self) -> None:
        self._quick_deaths = 0

    def pause_after(self, lived_s: float) -> float | None:
        """How long to wait before the next start; None where there should be none."""
        if lived_s >= STEADY_S:
            self._quick_deaths = 0
        self._quick_deaths += 1
        if self._quick_deaths > MAX_QUICK_DEATHS:
            return None
        if self._quick_deaths == 1:
            return 0.0
        return float(min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._quick_deaths - 2)))
