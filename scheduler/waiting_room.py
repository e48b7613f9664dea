"""Streams that have no place yet, and whose turn it is. Who gets which place is the control loop's to say.

Turns go between tenants by fair share, within a tenant by priority and age (`fair_share.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import InitVar, dataclass, field, replace
from heapq import heappop, heappush
from itertools import count

from serverless_triton.scheduler.admission import ADMISSION_SPAN, Assignment, ReplicaId, Span, StreamId
from serverless_triton.scheduler.cluster import ReplicaState
from serverless_triton.scheduler.errors import NoCapacity, SchedulerError
from serverless_triton.scheduler.fair_share import FairShare, standing_since_s
from serverless_triton.scheduler.identity import ANONYMOUS, Caller
from serverless_triton.scheduler.policy import StartRequest
from serverless_triton.scheduler.view import ModelView


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOrder:
    """What the control loop needs to know of a model: its view for the policy, its parameters for the engine."""

    view: ModelView
    parameters: Mapping[str, str]


@dataclass(slots=True, kw_only=True, eq=False)
class Waiting:
    """A stream without a place. `joined` is the start that it waits for; the room numbers them in order of arrival.

    Made in a running event loop.
    """

    stream: StreamId
    order: ModelOrder
    since_s: float
    avoid: InitVar[frozenset[ReplicaId]] = frozenset()
    caller: Caller = ANONYMOUS
    priority: int = 0
    request: StartRequest = field(init=False)
    place: asyncio.Future[Assignment] = field(init=False)
    number: int = 0
    charged: bool = field(init=False)
    joined: ReplicaId | None = None
    waited_for_start: bool = False
    failed_starts: int = 0

    def __post_init__(self, avoid: frozenset[ReplicaId]) -> None:
        self.request = StartRequest(model=self.order.view, avoid=avoid)
        self.charged = self.resumes  # its tenant has paid for the place that broke
        self.place = asyncio.get_running_loop().create_future()

    @property
    def model(self) -> str:
        return self.order.view.name

    @property
    def resumes(self) -> bool:
        """Its replica broke in the middle of its answer."""
        return bool(self.request.avoid)

    @property
    def turn(self) -> tuple[bool, float, int]:
        """Within its tenant the least comes first."""
        return not self.resumes, standing_since_s(self.since_s, self.priority), self.number

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
    and their turn comes `before` or `after` its own.
    """

    starting: int
    before: int
    after: int


_TIE = 1e-9  # what sums of 1/weight may differ by where they are equal


@dataclass(slots=True)
class WaitingRoom:
    """Enter once; out by a place, an error, or leaving."""

    _waiting: list[Waiting] = field(default_factory=list)
    _share: FairShare = field(default_factory=FairShare)
    _numbers: Iterator[int] = field(default_factory=count)

    def enter(self, waiting: Waiting) -> None:
        if not any(one.caller.tenant == waiting.caller.tenant for one in self._waiting):
            self._share.arrive(waiting.caller.tenant)
        waiting.number = next(self._numbers)
        self._waiting.append(waiting)

    def leave(self, waiting: Waiting) -> bool:
        """Whether it was still waiting."""
        if waiting not in self._waiting:
            return False
        self._remove(waiting)
        return True

    def give_place(self, waiting: Waiting, place: Assignment) -> None:
        self._remove(waiting)
        waiting.place.set_result(place)

    def give_error(self, waiting: Waiting, error: SchedulerError) -> None:
        self._remove(waiting)
        waiting.place.set_exception(error)

    def _remove(self, waiting: Waiting) -> None:
        self._waiting.remove(waiting)
        if not self._waiting:
            self._share = FairShare()  # where nobody waits there is nothing to share

    def join(self, waiting: Waiting, replica: ReplicaId) -> None:
        """A place there is its own, now or once the replica is ready. It costs its tenant once, however often starts
        fail.
        """
        waiting.joined = replica
        if not waiting.charged:
            waiting.charged = True
            self._share.charge(waiting.caller.tenant, waiting.caller.weight)

    def turns(self) -> Iterator[Waiting]:
        """Those that nothing serves yet, each once. Whoever joins meanwhile counts in whose turn is next."""
        return _turns([waiting for waiting in self._waiting if waiting.joined is None], self._share)

    def joined(self, replica: ReplicaId) -> list[Waiting]:
        """Those that wait for this replica's start."""
        return [waiting for waiting in self._waiting if waiting.joined == replica]

    def everyone(self) -> list[Waiting]:
        return list(self._waiting)

    def standing(self, newcomer: Waiting) -> Standing:
        """Of one who has not entered, if everyone who waits for the model got a place in turn."""
        of_model = [waiting for waiting in self._waiting if waiting.model == newcomer.model]
        unserved = [waiting for waiting in of_model if waiting.joined is None]
        before, share = 0, self._share.copy()
        if not any(waiting.caller.tenant == newcomer.caller.tenant for waiting in self._waiting):
            share.arrive(newcomer.caller.tenant)
        newcomer.number = next(self._numbers)
        for waiting in _turns([*unserved, newcomer], share):
            if waiting is newcomer:
                break
            if not waiting.charged:
                share.charge(waiting.caller.tenant, waiting.caller.weight)
            before += 1
        return Standing(starting=len(of_model) - len(unserved), before=before, after=len(unserved) - before)

    def make_space(self, newcomer: Waiting, limit: int, retry_after_s: Callable[[], float]) -> None:
        """In a queue that is full: its last gives way, of the tenant that has most of it for its weight.

        Streams that resume always come in, and never give way. Raises NoCapacity where that is the newcomer itself.
        """
        if newcomer.resumes or self.by_model()[newcomer.model] < limit:
            return
        words = f"{limit} requests for model '{newcomer.model}' wait already; try later"
        full = NoCapacity(words, retry_after_s=retry_after_s())
        last = self._last_with(newcomer)
        if last is newcomer:
            raise full
        self.give_error(last, full)

    def _last_with(self, newcomer: Waiting) -> Waiting:
        newcomer.number = next(self._numbers)
        held: dict[str, list[Waiting]] = defaultdict(list)
        for waiting in [*self._waiting, newcomer]:
            if waiting.model == newcomer.model and waiting.joined is None and not waiting.resumes:
                held[waiting.caller.tenant].append(waiting)
        heaviest = max(sorted(held), key=lambda tenant: _load(held[tenant]))
        own = newcomer.caller.tenant
        tenant = heaviest if _load(held[heaviest]) > _load(held[own]) + _TIE else own
        return max(held[tenant], key=lambda waiting: waiting.turn)

    def by_model(self) -> Counter[str]:
        return Counter(waiting.model for waiting in self._waiting)


def _turns(waiting: Iterable[Waiting], share: FairShare) -> Iterator[Waiting]:
    """Each queue's next one is at its end."""
    queues: dict[str, list[Waiting]] = defaultdict(list)
    for one in sorted(waiting, key=lambda one: one.turn, reverse=True):
        queues[one.caller.tenant].append(one)
    heads: list[tuple[float, float, int, str]] = []
    for tenant in queues:
        _push_head(heads, queues[tenant], share)
    while heads:
        queue = queues[heappop(heads)[-1]]
        yield queue.pop()
        if queue:
            _push_head(heads, queue, share)


def _push_head(heads: list[tuple[float, float, int, str]], queue: list[Waiting], share: FairShare) -> None:
    """Of tenants whose next places start at the same time, the one that has waited longest comes first."""
    head = queue[-1]
    heappush(heads, (share.next_start(head.caller.tenant), head.since_s, head.number, head.caller.tenant))


def _load(waiting: Iterable[Waiting]) -> float:
    return sum(1 / one.caller.weight for one in waiting)
