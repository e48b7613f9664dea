"""Reservations: sequences that are kept up for streams which run elsewhere and may come. Bookkeeping only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serverless_triton.backend.engines.protocol import (
    RESERVATION_S,
    CatchUpRequest,
    GenerationRequest,
    InvalidRequest,
    Reservation,
)
from serverless_triton.backend.engines.schedule import Stream

_MOST_USED = 4096  # activations remembered; a stream activates once a move, and its moves are seconds apart


@dataclass(slots=True, kw_only=True, eq=False)
class Reserved:
    """What is held under a key. `asked` is what the first round asked for, apart from generated tokens."""

    key: Reservation
    stream: Stream
    asked: tuple[str | None, tuple[int, ...], Mapping[str, Any]]
    round_s: float  # when the last round came or ended


class Reservations:
    """One a stream, the newest attempt's."""

    def __init__(self) -> None:
        self._held: dict[str, Reserved] = {}
        self._used: OrderedDict[Reservation, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Reservation) -> Reserved | None:
        held = self._held.get(key.stream)
        return held if held is not None and held.key == key else None

    def older(self, key: Reservation) -> Reserved | None:
        """What an earlier attempt of the same stream left."""
        held = self._held.get(key.stream)
        return held if held is not None and held.key.attempt < key.attempt else None

    def of(self, stream: Stream) -> Reserved | None:
        return next((held for held in self._held.values() if held.stream is stream), None)

    def check_unused(self, key: Reservation) -> None:
        """Raises InvalidRequest."""
        if key in self._used:
            raise InvalidRequest(f"attempt {key.attempt} was activated already; a further move needs a new attempt")

    def check_newest(self, key: Reservation) -> None:
        """Raises InvalidRequest."""
        held = self._held.get(key.stream)
        if held is not None and held.key.attempt > key.attempt:
            raise InvalidRequest(f"attempt {key.attempt} is over; attempt {held.key.attempt} is being caught up")

    def add(self, reserved: Reserved) -> None:
        assert reserved.key.stream not in self._held
        self._held[reserved.key.stream] = reserved

    def drop(self, reserved: Reserved) -> None:
        del self._held[reserved.key.stream]

    def use(self, key: Reservation) -> None:
        """It is activated; whatever was held under it is the caller's."""
        self._used[key] = None
        if len(self._used) > _MOST_USED:
            self._used.popitem(last=False)
        if self.get(key) is not None:
            del self._held[key.stream]

    def expired(self, now_s: float) -> list[Reserved]:
        return [r for r in self._held.values() if r.stream.idle and now_s - r.round_s >= RESERVATION_S]


def asked(request: CatchUpRequest | GenerationRequest) -> tuple[str | None, tuple[int, ...], Mapping[str, Any]]:
    """What two requests must have in common to speak of one stream, whatever it has generated since."""
    return request.text, tuple(request.input_ids or ()), dict(request.sampling_parameters)
