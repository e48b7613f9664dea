"""Streams that have no place yet, oldest first. Who gets which place is the control loop's to say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from serverless_triton.scheduler.admission import ADMISSION_SPAN, Assignment, ReplicaId, Span, StreamId
from serverless_triton.scheduler.cluster import ReplicaState
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.policy import StartRequest
from serverless_triton.scheduler.view import ModelView


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOrder:
    """What the control loop needs to know of a model: its view for the policy, its parameters for the engine."""

    view: ModelView
    parameters: Mapping[str, str]


@dataclass(slots=True, kw_only=True)
class Waiting:
    """A stream without a place. `joined` is the start that it waits for."""

    stream: StreamId
    request: StartRequest
    order: ModelOrder
    since_s: float
    place: asyncio.Future[Assignment]
    joined: ReplicaId | None = None
    waited_for_start: bool = False
    failed_starts: int = 0

    def place_on(self, replica: ReplicaState, grpc_address: str, epoch: int) -> Assignment:
        """A place there for this stream, with the start that it waited for, if it did."""
        start = replica.start if self.waited_for_start else None
        if start is not None:
            decided = Span(name="schedule", start_s=self.since_s, end_s=start.spans[0].start_s, parent=ADMISSION_SPAN)
            start = replace(start, spans=(decided, *start.spans))
        return Assignment(
            stream=self.stream,
            model=replica.model.name,
            server=replica.server,
            grpc_address=grpc_address,
            replica=replica.id,
            epoch=epoch,
            start=start,
            exactness=replica.exactness,
            lost=replica.lost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Those that wait for one model, as a newcomer meets them: on a start that is under way, or nothing serves them yet
    and they come `before` it.
    """

    starting: int
    before: int


@dataclass(slots=True)
class WaitingRoom:
    """Enter once; out by a place, an error, or leaving."""

    _waiting: list[Waiting] = field(default_factory=list)

    def enter(self, waiting: Waiting) -> None:
        self._waiting.append(waiting)

    def leave(self, waiting: Waiting) -> bool:
        """Whether it was still waiting."""
        if waiting not in self._waiting:
            return False
        self._waiting.remove(waiting)
        return True

    def give_place(self, waiting: Waiting, place: Assignment) -> None:
        self._waiting.remove(waiting)
        waiting.place.set_result(place)

    def give_error(self, waiting: Waiting, error: SchedulerError) -> None:
        self._waiting.remove(waiting)
        waiting.place.set_exception(error)

    def unplaced(self) -> list[Waiting]:
        """Those that no start serves yet."""
        return [waiting for waiting in self._waiting if waiting.joined is None]

    def joined(self, replica: ReplicaId) -> list[Waiting]:
        """Those that wait for this replica's start."""
        return [waiting for waiting in self._waiting if waiting.joined == replica]

    def everyone(self) -> list[Waiting]:
        return list(self._waiting)

    def standing(self, model: str) -> Standing:
        """A newcomer's."""
        of_model = [waiting for waiting in self._waiting if waiting.order.view.name == model]
        starting = sum(waiting.joined is not None for waiting in of_model)
        return Standing(starting=starting, before=len(of_model) - starting)

    def by_model(self) -> Counter[str]:
        return Counter(waiting.order.view.name for waiting in self._waiting)
