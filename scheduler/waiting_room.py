"""Streams that have no place yet, and whose turn it is. Who gets which place is the control loop's to say.

Turns go between tenants by fair share, within a tenant by priority and age (`fair_share.py`). Of requests that are
alike to the policy only one needs an answer: so what an event costs grows with the number of models that are waited
for, and not with the number of those who wait.
"""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import InitVar, dataclass, field, replace
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Protocol

from serverless_triton.scheduler.admission import ADMISSION_SPAN, Assignment, ReplicaId, ServerName, Span, StreamId
from serverless_triton.scheduler.cluster import ReplicaState
from serverless_triton.scheduler.errors import NoCapacity, SchedulerError, UnknownModel
from serverless_triton.scheduler.fair_share import FairShare, standing_since_s
from serverless_triton.scheduler.identity import ANONYMOUS, Caller
from serverless_triton.scheduler.model_lifecycle import UNSAID, ModelLifecycle
from serverless_triton.scheduler.policy import StartRequest
from serverless_triton.scheduler.view import ModelView


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOrder:
    """What the control loop needs to know of a model: its view for the policy, its parameters for the engine."""

    view: ModelView
    parameters: Mapping[str, str]
    lifecycle: ModelLifecycle = UNSAID


class OrderOf(Protocol):
    """Orders by name and version, "" for the latest that is served."""

    def __call__(self, name: str, version: str = "") -> ModelOrder:
        """Raises UnknownModel and its kin."""


Turn = tuple[bool, float, int]
EVERYBODY = sys.maxsize  # as a version of the cluster: nobody has been told to wait in it yet


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
    def turn(self) -> Turn:
        """Within its tenant the least comes first."""
        return not self.resumes, standing_since_s(self.since_s, self.priority), self.number

    def elsewhere(self, failed: ServerName, servers: int) -> StartRequest:
        """What it asks after a start that failed there, of so many servers: where there is no other, there again."""
        avoid = self.request.avoid_servers | {failed}
        return replace(self.request, avoid_servers=avoid if len(avoid) < servers else frozenset())

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
            definition=replica.model.definition,
            version=replica.model.version,
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


@dataclass(slots=True, eq=False)
class Line:
    """Those that ask the same of the policy and that nothing serves yet: a queue by tenant, in order of their turns."""

    queues: dict[str, list[Waiting]] = field(default_factory=lambda: defaultdict(list))
    rests_at: int = -1  # the version of the cluster in which one of them was told to wait

    def add(self, waiting: Waiting) -> None:
        insort(self.queues[waiting.caller.tenant], waiting, key=_turn)

    def copy(self) -> Line:
        return Line(defaultdict(list, {tenant: list(queue) for tenant, queue in self.queues.items()}), self.rests_at)

    def remove(self, waiting: Waiting) -> None:
        queue = self.queues[waiting.caller.tenant]
        del queue[bisect_left(queue, waiting.turn, key=_turn)]
        if not queue:
            del self.queues[waiting.caller.tenant]


@dataclass(slots=True)
class Lines:
    """All that nothing serves yet, by what they ask of the policy."""

    _by_request: dict[StartRequest, Line] = field(default_factory=lambda: defaultdict(Line))

    def add(self, waiting: Waiting) -> None:
        self._by_request[waiting.request].add(waiting)

    def remove(self, waiting: Waiting) -> None:
        line = self._by_request[waiting.request]
        line.remove(waiting)
        if not line.queues:
            del self._by_request[waiting.request]

    def rest(self, request: StartRequest, version: int) -> None:
        self._by_request[request].rests_at = version

    def queues_of(self, model: str) -> Iterator[list[Waiting]]:
        """Each in order of turns, of one tenant."""
        for line in self._lines_of(model).values():
            yield from line.queues.values()

    def copy_of(self, model: str) -> Lines:
        """Those for that model, for plans that change nothing here."""
        return Lines(defaultdict(Line, {request: line.copy() for request, line in self._lines_of(model).items()}))

    def _lines_of(self, model: str) -> dict[StartRequest, Line]:
        return {request: line for request, line in self._by_request.items() if request.model.name == model}

    def turns(self, share: FairShare, version: int) -> Iterator[Waiting]:
        """Each once, the next one found after whoever was next has been dealt with. Without lines that rest since this
        version or a later one.
        """
        heads: dict[str, list[Head]] = defaultdict(list)
        for line in self._by_request.values():
            if line.rests_at < version:
                for tenant, queue in line.queues.items():
                    heads[tenant].append((queue[0].turn, queue[0], line, queue, 0))
        stands: list[Stand] = []
        for of_tenant in heads.values():
            heapify(of_tenant)
            _take_stand(stands, of_tenant, share)
        while stands:
            of_tenant = heads[heappop(stands)[-1]]
            _, waiting, line, queue, at = heappop(of_tenant)
            if line.rests_at < version:
                yield waiting
                at += at < len(queue) and queue[at] is waiting  # else it was served, and has left
                if at < len(queue):
                    heappush(of_tenant, (queue[at].turn, queue[at], line, queue, at))
            while of_tenant and of_tenant[0][2].rests_at >= version:
                heappop(of_tenant)
            _take_stand(stands, of_tenant, share)


Head = tuple[Turn, Waiting, Line, list[Waiting], int]  # who is next in a queue, and where in it; by turn
Stand = tuple[float, float, int, str]  # a tenant, by when its next place starts and who is next of it


def _take_stand(stands: list[Stand], heads: list[Head], share: FairShare) -> None:
    """Of tenants whose next places start at the same time, the one that has waited longest comes first."""
    if heads:
        head = heads[0][1]
        heappush(stands, (share.next_start(head.caller.tenant), head.since_s, head.number, head.caller.tenant))


def _turn(waiting: Waiting) -> Turn:
    return waiting.turn


_TIE = 1e-9  # what sums of 1/weight may differ by where they are equal


@dataclass(slots=True)
class WaitingRoom:
    """Enter once; out by a place, an error, or leaving."""

    _waiting: dict[Waiting, None] = field(default_factory=dict)  # in order of arrival
    _unserved: Lines = field(default_factory=Lines)
    _models: Counter[str] = field(default_factory=Counter)
    _tenants: Counter[str] = field(default_factory=Counter)
    _share: FairShare = field(default_factory=FairShare)
    _numbers: Iterator[int] = field(default_factory=count)

    def enter(self, waiting: Waiting) -> None:
        if not self._tenants[waiting.caller.tenant]:
            self._share.arrive(waiting.caller.tenant)
        waiting.number = next(self._numbers)
        self._waiting[waiting] = None
        self._unserved.add(waiting)
        self._models[waiting.model] += 1
        self._tenants[waiting.caller.tenant] += 1

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

    def turn_away(self, model: str, reason: str) -> list[Waiting]:
        """Everyone who waits for a model that is gone."""
        waited = [waiting for waiting in self._waiting if waiting.model == model]
        for waiting in waited:
            self.give_error(waiting, UnknownModel(reason))
        return waited

    def _remove(self, waiting: Waiting) -> None:
        del self._waiting[waiting]
        if waiting.joined is None:
            self._unserved.remove(waiting)
        _count_off(self._models, waiting.model)
        _count_off(self._tenants, waiting.caller.tenant)
        if not self._waiting:
            self._share = FairShare()  # where nobody waits there is nothing to share

    def join(self, waiting: Waiting, replica: ReplicaId) -> None:
        """A place there is its own, now or once the replica is ready. It costs its tenant once, however often starts
        fail.
        """
        self._unserved.remove(waiting)
        waiting.joined = replica
        if not waiting.charged:
            waiting.charged = True
            self._share.charge(waiting.caller.tenant, waiting.caller.weight)

    def part(self, waiting: Waiting, request: StartRequest) -> None:
        """What it had joined is over without a place. From now on it asks this."""
        waiting.joined, waiting.request = None, request
        self._unserved.add(waiting)

    def rest(self, waiting: Waiting, version: int) -> None:
        """In this version of the cluster it has to wait, and so have all others that ask the same."""
        self._unserved.rest(waiting.request, version)

    def turns(self, version: int = EVERYBODY) -> Iterator[Waiting]:
        """Those that nothing serves yet, each once, without those that `rest` in this version of the cluster or a later
        one. Whoever joins meanwhile counts in whose turn is next.
        """
        return self._unserved.turns(self._share, version)

    def joined(self, replica: ReplicaId) -> list[Waiting]:
        """Those that wait for this replica's start."""
        return [waiting for waiting in self._waiting if waiting.joined == replica]

    def everyone(self) -> list[Waiting]:
        return list(self._waiting)

    def standing(self, newcomer: Waiting) -> Standing:
        """Of one who has not entered, if everyone who waits for the model got a place in turn."""
        newcomer.number = next(self._numbers)
        share, of_model = self._share.copy(), self._unserved.copy_of(newcomer.model)
        unserved = sum(map(len, of_model.queues_of(newcomer.model)))
        of_model.add(newcomer)
        if not self._tenants[newcomer.caller.tenant]:
            share.arrive(newcomer.caller.tenant)
        before = _places_before(newcomer, of_model, share)
        return Standing(starting=self._models[newcomer.model] - unserved, before=before, after=unserved - before)

    def make_space(self, newcomer: Waiting, limit: int, retry_after_s: Callable[[], float]) -> None:
        """In a queue that is full: its last gives way, of the tenant that has most of it for its weight.

        Streams that resume always come in, and never give way. Raises NoCapacity where that is the newcomer itself.
        """
        if newcomer.resumes or self._models[newcomer.model] < limit:
            return
        words = f"{limit} requests for model '{newcomer.model}' wait already; try later"
        full = NoCapacity(words, retry_after_s=retry_after_s())
        last = self._last_with(newcomer)
        if last is newcomer:
            raise full
        self.give_error(last, full)

    def _last_with(self, newcomer: Waiting) -> Waiting:
        newcomer.number = next(self._numbers)
        own = newcomer.caller.tenant
        held: dict[str, list[list[Waiting]]] = defaultdict(list, {own: [[newcomer]]})
        for queue in self._unserved.queues_of(newcomer.model):
            if not queue[0].resumes:
                held[queue[0].caller.tenant].append(queue)
        loads = {tenant: _load(held[tenant]) for tenant in sorted(held)}
        heaviest = max(loads, key=lambda tenant: loads[tenant])
        tenant = heaviest if loads[heaviest] > loads[own] + _TIE else own
        return max((queue[-1] for queue in held[tenant]), key=_turn)

    def unserved(self, model: str) -> int:
        """How many wait for the model without having joined a start."""
        return sum(map(len, self._unserved.queues_of(model)))

    def by_model(self) -> Mapping[str, int]:
        return self._models


def _places_before(newcomer: Waiting, lines: Lines, share: FairShare) -> int:
    for before, waiting in enumerate(lines.turns(share, EVERYBODY)):
        if waiting is newcomer:
            return before
        if not waiting.charged:
            share.charge(waiting.caller.tenant, waiting.caller.weight)
    raise AssertionError("the newcomer is one of them")


def _load(queues: Iterable[Iterable[Waiting]]) -> float:
    return sum(1 / waiting.caller.weight for queue in queues for waiting in queue)


def _count_off(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]
