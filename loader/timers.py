"""What the server's loop is to do later. Pure."""

from __future__ import annotations

from collections.abc import Callable


class Timers:
    """Calls that are due at some time, each once."""

    def __init__(self) -> None:
        self._calls: list[tuple[float, Callable[[], None]]] = []

    def add(self, due_s: float, call: Callable[[], None]) -> None:
        self._calls.append((due_s, call))

    def next_due_s(self) -> float | None:
        """None where there is nothing to wait for."""
        return min((due_s for due_s, _ in self._calls), default=None)

    def take_due(self, now_s: float) -> list[Callable[[], None]]:
        """In the order in which they were due."""
        due = sorted((each for each in self._calls if each[0] <= now_s), key=lambda each: each[0])
        self._calls = [each for each in self._calls if each[0] > now_s]
        return [call for _, call in due]
