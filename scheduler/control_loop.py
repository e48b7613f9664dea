"""The one decider (decision 6): who waits, what starts where, what is evicted; the only caller of effects.

Everything runs on one asyncio loop and all mutable state is this object's, so there are no locks. Its steps, after
every event (an admission, a finished stream, a start that ended, news of a server):

1. drop what is gone: replicas of a dead server, replicas their agent no longer shows (`news.py`);
2. for the waiting streams, in turn (`waiting_room.py`), ask the policy and do what it says; where it says wait, all
   that ask the same wait until something changes;
3. a start parks whom it evicts first (the agent confirms), then loads the engine and the stub at the same time, or the
   engine alone for a stub that is parked there (`starts.py`);
4. when a start ends, everyone who joined it gets a place or its error.

What becomes of replicas whose model has changed or gone is `rollouts.py`'s, by `warm`, `abandon` and `ends.retire`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from serverless_triton.scheduler.admission import Assignment, Outlook, ReplicaId, StreamId
from serverless_triton.scheduler.cluster import Cluster, ReplicaState
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.demand import Demand
from serverless_triton.scheduler.departures import Departures
from serverless_triton.scheduler.effects import Effects
from serverless_triton.scheduler.ends import Ends
from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed, ModelTooLarge
from serverless_triton.scheduler.expectations import Expectations
from serverless_triton.scheduler.identity import ANONYMOUS, Caller
from serverless_triton.scheduler.learned import LearnedModels
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.news import News
from serverless_triton.scheduler.outlook import RETRY_AFTER_S, Prospects
from serverless_triton.scheduler.policy import Decision, Policy, Refuse, Start, Use, choose, in_time
from serverless_triton.scheduler.prefetching import Prefetching
from serverless_triton.scheduler.starts import Starts
from serverless_triton.scheduler.upkeep import Upkeep
from serverless_triton.scheduler.view import Phase
from serverless_triton.scheduler.waiting_room import OrderOf, Waiting, WaitingRoom

logger = logging.getLogger(__name__)

NOWHERE = ReplicaId("")
LATE_S = 0.01  # so much later than expected nobody waits any more


@dataclass(slots=True)
class ControlLoop:
    """Implements `Admission` for gateways of this process; server news comes through `server_watch.py`."""

    cluster: Cluster
    effects: Effects
    order_of: OrderOf
    clock: Callable[[], float]
    metrics: ControlMetrics
    policy: Policy = choose
    limits: ControlLimits = field(default_factory=ControlLimits)
    learned: LearnedModels = field(default_factory=LearnedModels)
    epoch: int = 1
    may_act: Callable[[], bool] = lambda: True  # as long as not, nothing is begun, and everybody waits
    lasting: Callable[[], Iterable[str]] = tuple  # models that are wanted though nobody asks for them
    demand: Demand = field(default_factory=Demand)
    _streams: dict[StreamId, str] = field(default_factory=dict)  # that hold or want a place, and their models
    _room: WaitingRoom = field(default_factory=WaitingRoom)
    _places: dict[StreamId, ReplicaId] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    departures: Departures = field(init=False)
    ends: Ends = field(init=False)
    starts: Starts = field(init=False)
    news: News = field(init=False)
    prefetching: Prefetching = field(init=False)
    upkeep: Upkeep = field(init=False)
    _prospects: Prospects = field(init=False)
    _expectations: Expectations = field(init=False)
    _alarm: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self._prospects = Prospects(self.cluster, self.clock, self.policy)
        self._expectations = Expectations(
            cluster=self.cluster, holds=self._prospects.holds, clock=self.clock, unserved=self._room.unserved
        )
        self.departures = Departures(
            cluster=self.cluster, effects=self.effects, epoch=lambda: self.epoch, spawn=self._spawn
        )
        self.ends = Ends(
            cluster=self.cluster,
            room=self._room,
            departures=self.departures,
            metrics=self.metrics,
            limits=self.limits,
        )
        self.starts = Starts(
            cluster=self.cluster,
            effects=self.effects,
            ends=self.ends,
            departures=self.departures,
            learned=self.learned,
            metrics=self.metrics,
            clock=self.clock,
            epoch=lambda: self.epoch,
            spawn=self._spawn,
            is_ready=self._serve_joined,
            dispatch=self.dispatch,
        )
        self.news = News(
            cluster=self.cluster,
            ends=self.ends,
            departures=self.departures,
            metrics=self.metrics,
            limits=self.limits,
            is_ready=self._serve_joined,
        )
        self._make_lifecycle()

    def _make_lifecycle(self) -> None:
        self.prefetching = Prefetching(
            cluster=self.cluster,
            effects=self.effects,
            epoch=lambda: self.epoch,
            clock=self.clock,
            spawn=self._spawn,
            budget_bytes=self.limits.prefetch_bytes_per_server,
        )
        self.upkeep = Upkeep(
            cluster=self.cluster,
            ends=self.ends,
            demand=self.demand,
            prefetching=self.prefetching,
            order_of=self.order_of,
            choose=self.policy,
            begin=self.starts.begin,
            clock=self.clock,
            limits=self.limits,
            may_act=lambda: self.may_act(),
            lasting=lambda: self.lasting(),
        )

    # Admission

    async def admit(
        self,
        stream: StreamId,
        model: str,
        *,
        timeout_s: float,
        avoid: frozenset[ReplicaId] = frozenset(),
        caller: Caller = ANONYMOUS,
        priority: int = 0,
        version: str = "",
    ) -> Assignment:
        order = self.order_of(model, version)
        waiting = Waiting(
            stream=stream, order=order, since_s=self.clock(), avoid=avoid, caller=caller, priority=priority
        )
        self.ends.suspect(avoid)
        self._streams[stream] = model
        self.demand.came(model, self.clock(), resumes=bool(avoid))
        try:
            return await self._wait(waiting, timeout_s)
        except BaseException:
            self._is_over(stream)
            raise

    def _is_over(self, stream: StreamId) -> None:
        model = self._streams.pop(stream, None)
        if model is not None:
            self.demand.went(model, self.clock())

    async def _wait(self, waiting: Waiting, timeout_s: float) -> Assignment:
        """For a place, or its error."""
        place, retry_after_s = waiting.place, lambda: self._prospects.retry_after_s(waiting.order.view)
        self._room.make_space(waiting, self.limits.max_waiting_per_model, retry_after_s)
        self._room.enter(waiting)
        self._expectations.renew_model(waiting.model)
        try:
            self.dispatch()
            await asyncio.wait({place}, timeout=timeout_s)
            if place.done():
                return place.result()
            late = f"model '{waiting.model}' did not start within {round(timeout_s, 3):g} s"
            raise AdmissionTimeout(late, retry_after_s=retry_after_s())
        except asyncio.CancelledError:
            if place.done() and place.exception() is None:
                self._give_back(place.result())  # given in the very moment that nobody wanted it any more
            raise
        finally:
            self._leave(waiting)

    def _leave(self, waiting: Waiting) -> None:
        if self._room.leave(waiting) and waiting.joined is not None:
            self._drop_reference(waiting.joined, waiting.stream)

    def finish(self, assignment: Assignment, *, broken: bool = False) -> None:
        if broken:
            self.ends.suspect(frozenset({assignment.replica}))
        self._prospects.holds.ended(assignment.stream, assignment.model, self.clock())
        self._is_over(assignment.stream)
        self._drop_reference(assignment.replica, assignment.stream)

    def hold(self, stream: StreamId, replica: ReplicaState) -> None:
        """The stream has a place there that an earlier leader gave."""
        replica.streams.add(stream)
        self._places[stream] = replica.id
        self._prospects.holds.began(stream, self.clock())
        self.cluster.changed(replica=replica.id)

    def _give_back(self, unused: Assignment) -> None:
        """As `finish`, for a place that says nothing about how long places are held."""
        self._prospects.holds.forget(unused.stream)
        self.finish(unused)

    def progress(self, stream: StreamId, *, input_tokens: int, output_tokens: int) -> None:
        replica = self.cluster.replicas.get(self._places.get(stream, NOWHERE))
        if replica is not None and stream in replica.streams:
            replica.held_tokens[stream] = input_tokens + output_tokens
            self.cluster.changed(replica=replica.id)

    def _drop_reference(self, replica_id: ReplicaId, stream: StreamId) -> None:
        replica = self.cluster.replicas.get(replica_id)
        if self._places.get(stream) == replica_id:
            del self._places[stream]
        if replica is not None and stream in replica.streams:
            replica.streams.remove(stream)
            replica.held_tokens.pop(stream, None)
            replica.idle_since_s = self.clock()
            self._expectations.renew(replica)
            self.cluster.changed(replica=replica.id)
            self.ends.evict_leaving(replica)
            self.dispatch()

    async def warm(self, model: str, *, timeout_s: float, version: str = "") -> None:
        """A replica of the newest definition; those of older ones do not count, and are not stopped by it."""
        order, stream = self.order_of(model, version), StreamId(f"warm-{secrets.token_hex(8)}")
        older = frozenset(replica.id for replica in self.cluster.outdated(order.view))
        waiting = Waiting(stream=stream, order=order, since_s=self.clock(), avoid=older)
        self._give_back(await self._wait(waiting, timeout_s))

    def abandon(self, model: str, reason: str) -> None:
        """The model is gone: whoever waits for it hears why, and its replicas go as their streams end."""
        waited = self._room.turn_away(model, reason)
        for replica in [one for one in self.cluster.of_model(model) if not one.retiring]:
            self.ends.retire(replica)
        for waiting in waited:
            if waiting.joined is not None:
                self._drop_reference(waiting.joined, waiting.stream)
        self.departures.unload_all_parked(model)

    async def release(self, model: str, *, timeout_s: float) -> None:
        """From now on its replicas take no more streams: who asks for the model has another one started."""
        self.order_of(model)
        replicas = self.cluster.of_model(model)
        self.departures.unload_all_parked(model)
        try:
            await asyncio.wait_for(asyncio.gather(*(self._release_when_idle(r) for r in replicas)), timeout_s)
        except asyncio.TimeoutError as error:
            late = (
                f"model '{model}' still has streams after {timeout_s:.0f} s; what runs of it goes when they have ended"
            )
            raise AdmissionTimeout(late) from error

    async def _release_when_idle(self, replica: ReplicaState) -> None:
        if not replica.view().is_idle and not replica.retiring:
            self.ends.retire(replica)
        while replica.id in self.cluster.replicas:
            if replica.view().is_idle:
                self.ends.forget(replica, "unloaded")
                self.ends.clean_up(replica)
            else:
                await self._changed.wait()
        await self.departures.ended(replica.server, replica.id)

    async def outlook(self, model: str, *, caller: Caller = ANONYMOUS, priority: int = 0) -> Outlook:
        order = self.order_of(model)
        newcomer = Waiting(stream=StreamId(""), order=order, since_s=self.clock(), caller=caller, priority=priority)
        return self._prospects.outlook(order.view, self._room.standing(newcomer))

    def ready_models(self) -> frozenset[str]:
        return frozenset(r.model.name for r in self.cluster.replicas.values() if r.phase is Phase.READY)

    def runs(self, model: str, version: str) -> bool:
        return any(r.phase is Phase.READY and r.model.version in ("", version) for r in self.cluster.of_model(model))

    def failed_definitions(self) -> Mapping[str, str]:
        return {failed.model: failed.reason for failed in self.cluster.failed.values()}

    def waiting_by_model(self) -> dict[str, int]:
        """How many streams wait for a place, by model."""
        return dict(self._room.by_model())

    # Deciding

    def dispatch(self) -> None:
        """Ask the policy for everyone who waits without having joined a start, in turn."""
        self._changed.set()
        self._changed = asyncio.Event()
        if not self.may_act():
            return
        self.upkeep.soon()
        for waiting in self._room.turns(self.cluster.version):
            decision = self.policy(self.cluster.view(self.clock()), waiting.request)
            self._carry_out(waiting, in_time(decision, waiting.since_s))

    def _carry_out(self, waiting: Waiting, decision: Decision) -> None:
        action = decision.action
        if isinstance(action, Use):
            self._join(waiting, self.cluster.replicas[action.replica])
        elif isinstance(action, Start):
            self._join(waiting, self.starts.begin(waiting.order, action.candidate))
        elif isinstance(action, Refuse):
            self._room.give_error(waiting, ModelTooLarge(action.reason))
        else:
            self._room.rest(waiting, decision.view_version)
            if action.until_s is not None:
                self._come_back_at(action.until_s)

    def _come_back_at(self, at_s: float) -> None:
        """To whoever waits for what is expected then, if nothing happens before. Each that is later asks again."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + max(0.0, at_s - self.clock()) + LATE_S
        if self._alarm is None or due_s < self._alarm.when():
            self._silence()
            self._alarm = loop.call_at(due_s, self._ring)

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self) -> None:
        self._alarm = None
        self.cluster.later()
        self.dispatch()

    def _join(self, waiting: Waiting, replica: ReplicaState) -> None:
        replica.streams.add(waiting.stream)
        self._room.join(waiting, replica.id)
        if replica.phase is Phase.READY:
            self._give_place(waiting, replica)
        else:
            waiting.waited_for_start = True
        self._expectations.renew(replica)
        self.cluster.changed(replica=replica.id)

    def _give_place(self, waiting: Waiting, replica: ReplicaState) -> None:
        self._prospects.holds.began(waiting.stream, self.clock())
        self._places[waiting.stream] = replica.id
        address = self.cluster.servers[replica.server].grpc_address
        self._room.give_place(waiting, waiting.place_on(replica, address, self.epoch))

    def _serve_joined(self, replica: ReplicaState) -> None:
        """It can be used now."""
        self.upkeep.is_ready(replica)
        for waiting in self._room.joined(replica.id):
            self._give_place(waiting, replica)
        self._expectations.renew(replica)
        self.cluster.changed(replica=replica.id)

    async def close(self) -> None:
        """Stop deciding; replicas go on running and the next control loop adopts them."""
        self.upkeep.close()
        self._silence()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiting in self._room.everyone():
            self._room.give_error(waiting, LoadFailed("the scheduler is shutting down", retry_after_s=RETRY_AFTER_S))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
