"""When to ask a server again, and when to give up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..errors import RemoteUnavailable
from .failures import TransientFailure

Result = TypeVar("Result")

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 10.0


def delay_s(failures: int, jitter: float) -> float:
    """How long to wait after that many failures in a row: doubling, and between half and all of it by `jitter`."""
    whole_s = min(FIRST_DELAY_S * 2.0 ** min(failures - 1, 30), MAX_DELAY_S)
    return whole_s * (1 + jitter) / 2


class Patience:
    """One deadline for everything that is asked of one server: it moves on with every success."""

    def __init__(self, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = patience_s
        self._clock = clock
        self._deadline_s = clock() + patience_s

    def succeeded(self) -> None:
        self._deadline_s = self._clock() + self._patience_s

    def next_delay_s(self, failures: int) -> float | None:
        """How long to wait before the next attempt; None where that would be past the deadline."""
        pause_s = delay_s(failures, random.random())
        return pause_s if self._clock() + pause_s < self._deadline_s else None


async def asked_patiently(ask: Callable[[], Awaitable[Result]], url: str, patience: Patience) -> Result:
    """ask(), again after every TransientFailure. Raises RemoteUnavailable once patience has run out."""
    failures = 0
    while isinstance(outcome := await _outcome_of(ask), TransientFailure):
        failures += 1
        pause_s = patience.next_delay_s(failures)
        if pause_s is None:
            raise unavailable(url, outcome) from outcome
        await asyncio.sleep(pause_s)
    patience.succeeded()
    return outcome


async def _outcome_of(ask: Callable[[], Awaitable[Result]]) -> Result | TransientFailure:
    try:
        return await ask()
    except TransientFailure as failure:
        return failure


def unavailable(url: str, failure: TransientFailure) -> RemoteUnavailable:
    """The error once patience has run out."""
    return RemoteUnavailable(
        f"{url} cannot be read now: {failure}; check the network and that server, and ask again. What arrived is kept "
        "where the store has an SSD cache"
    )
