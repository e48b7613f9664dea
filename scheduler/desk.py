"""The leader's side of gateways elsewhere: the places that each holds, and what it is told.

A place is a stream's on a replica. A gateway that comes to a new leader says what it holds, and until all that there
are have come, or a moment has passed, nothing is decided: a replica that nobody seems to use is not idle yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from serverless_triton.scheduler.admission import Assignment, ReplicaId, StreamId
from serverless_triton.scheduler.cluster import ReplicaState
from serverless_triton.scheduler.control_loop import ControlLoop

logger = logging.getLogger(__name__)

COMING_S = 2.0  # how long gateways of an earlier leader are waited for
GONE_S = 5.0  # a gateway that has not come back by then is gone

Place = tuple[StreamId, ReplicaId]
OnLost = Callable[[Place, str], None]


@dataclass(slots=True)
class Book:
    """One gateway's. A place whose replica is not known (yet) has no assignment."""

    on_lost: OnLost
    places: dict[Place, Assignment | None] = field(default_factory=dict)
    visits: int = 0
    leaving: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class Desk:
    """Of one reign, on its asyncio loop."""

    loop: ControlLoop
    expected: set[str]  # gateways that were there before this reign
    may_decide_from_s: float
    _books: dict[str, Book] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether enough is known to decide."""
        return not self.expected or self.loop.clock() >= self.may_decide_from_s

    def come(self, gateway: str, held: Iterable[Place], on_lost: OnLost) -> int:
        """It follows us now and holds these places and no others. Returns the visit's number, for `leave`."""
        book = self._books.setdefault(gateway, Book(on_lost))
        book.on_lost, book.visits = on_lost, book.visits + 1
        if book.leaving is not None:
            book.leaving.cancel()
        held = set(held)
        for place in book.places.keys() - held:
            self.finish(gateway, place)
        for place in held - book.places.keys():
            self._hold(gateway, book, place)
        self.expected.discard(gateway)
        self.loop.dispatch()
        return book.visits

    def leave(self, gateway: str, visit: int) -> None:
        """Its connection broke; perhaps it comes again."""
        book = self._books.get(gateway)
        if book is not None and book.visits == visit:
            book.leaving = asyncio.get_running_loop().call_later(GONE_S, self._gone, gateway, visit)

    def _gone(self, gateway: str, visit: int) -> None:
        book = self._books[gateway]
        if book.visits == visit:
            logger.warning("gateway_gone gateway=%s places=%d", gateway, len(book.places))
            for place in list(book.places):
                self.finish(gateway, place)
            del self._books[gateway]

    def give(self, gateway: str, assignment: Assignment) -> bool:
        """Notes a new place; False where the gateway is not there (any more)."""
        book = self._books.get(gateway)
        if book is None:
            return False
        self._note(gateway, book, assignment)
        return True

    def finish(self, gateway: str, place: Place, *, broken: bool = False) -> None:
        """Idempotent."""
        book = self._books.get(gateway)
        assignment = None if book is None else book.places.pop(place, None)
        if assignment is not None:
            self.loop.finish(assignment, broken=broken)

    def give_up(self, gateway: str, stream: StreamId, kept: frozenset[ReplicaId]) -> None:
        """Places of the stream that it never heard of."""
        book = self._books.get(gateway)
        for place in [] if book is None else list(book.places):
            if place[0] == stream and place[1] not in kept:
                self.finish(gateway, place)

    def adopted(self, replica: ReplicaState) -> None:
        """News: whoever holds a place on it gets it back."""
        for gateway, book in self._books.items():
            for place, assignment in list(book.places.items()):
                if place[1] == replica.id and assignment is None:
                    self._hold(gateway, book, place)

    def close(self) -> None:
        for book in self._books.values():
            if book.leaving is not None:
                book.leaving.cancel()

    def _hold(self, gateway: str, book: Book, place: Place) -> None:
        stream, replica_id = place
        replica = self.loop.cluster.replicas.get(replica_id)
        if replica is None:
            book.places[place] = None
            return
        self.loop.hold(stream, replica)
        self._note(gateway, book, _assignment(stream, replica, self.loop))

    def _note(self, gateway: str, book: Book, assignment: Assignment) -> None:
        place = assignment.stream, assignment.replica
        book.places[place] = assignment
        assignment.lost.add_done_callback(lambda lost: self._tell_lost(gateway, place, lost))

    def _tell_lost(self, gateway: str, place: Place, lost: asyncio.Future[str]) -> None:
        book = self._books.get(gateway)
        if book is not None and book.places.get(place) is not None and not lost.cancelled():
            book.on_lost(place, lost.result())


def _assignment(stream: StreamId, replica: ReplicaState, loop: ControlLoop) -> Assignment:
    return Assignment(
        stream=stream,
        model=replica.model.name,
        server=replica.server,
        grpc_address=loop.cluster.servers[replica.server].grpc_address,
        replica=replica.id,
        epoch=loop.epoch,
        start=None,
        lost=replica.lost,
    )
