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
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from serverless_triton.scheduler.admission import Assignment, Outlook, ReplicaId, StreamId
from serverless_triton.scheduler.cluster import Cluster, ReplicaState
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.departures import Departures
from serverless_triton.scheduler.effects import Effects
from serverless_triton.scheduler.ends import Ends
from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed, ModelTooLarge
from serverless_triton.scheduler.identity import ANONYMOUS, Caller
from serverless_triton.scheduler.learned import LearnedModels
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.news import News
from serverless_triton.scheduler.outlook import RETRY_AFTER_S, Prospects
from serverless_triton.scheduler.policy import Decision, Refuse, Start, Use, choose, overdue
from serverless_triton.scheduler.starts import Starts
from serverless_triton.scheduler.view import Phase
from serverless_triton.scheduler.waiting_room import OrderOf, Waiting, WaitingRoom

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ControlLoop:
    """Implements `Admission` for gateways of this process; server news comes through `server_watch.py`."""

    cluster: Cluster
    effects: Effects
    order_of: OrderOf
    clock: Callable[[], float]
    metrics: ControlMetrics
    limits: ControlLimits = field(default_factory=ControlLimits)
    learned: LearnedModels = field(default_factory=LearnedModels)
    epoch: int = 1
    may_act: Callable[[], bool] = lambda: True  # as long as not, everybody waits
    _room: WaitingRoom = field(default_factory=WaitingRoom)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    departures: Departures = field(init=False)
    ends: Ends = field(init=False)
    starts: Starts = field(init=False)
    news: News = field(init=False)
    _prospects: Prospects = field(init=False)

    def __post_init__(self) -> None:
        self._prospects = Prospects(self.cluster, self.clock)
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
        return await self._wait(waiting, timeout_s)

    async def _wait(self, waiting: Waiting, timeout_s: float) -> Assignment:
        """For a place, or its error."""
        place, retry_after_s = waiting.place, lambda: self._prospects.retry_after_s(waiting.order.view)
        self._room.make_space(waiting, self.limits.max_waiting_per_model, retry_after_s)
        self._room.enter(waiting)
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
        self._drop_reference(assignment.replica, assignment.stream)

    def _give_back(self, unused: Assignment) -> None:
        """As `finish`, for a place that says nothing about how long places are held."""
        self._prospects.holds.forget(unused.stream)
        self.finish(unused)

    def _drop_reference(self, replica_id: ReplicaId, stream: StreamId) -> None:
        replica = self.cluster.replicas.get(replica_id)
        if replica is not None and stream in replica.streams:
            replica.streams.remove(stream)
            replica.idle_since_s = self.clock()
            self.cluster.changed()
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
        self.order_of(model)
        replicas = self.cluster.of_model(model)
        self.departures.unload_all_parked(model)
        try:
            await asyncio.wait_for(asyncio.gather(*(self._release_when_idle(r) for r in replicas)), timeout_s)
        except asyncio.TimeoutError as error:
            raise AdmissionTimeout(f"model '{model}' still has streams after {timeout_s:.0f} s") from error

    async def _release_when_idle(self, replica: ReplicaState) -> None:
        while replica.id in self.cluster.replicas:
            if replica.view().is_idle:
                self.ends.forget(replica, "unloaded")
                await asyncio.wait({self.ends.clean_up(replica)})
                return
            await self._changed.wait()

    def outlook(self, model: str, *, caller: Caller = ANONYMOUS, priority: int = 0) -> Outlook:
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
        for waiting in self._room.turns(self.cluster.version):
            decision = choose(self.cluster.view(), waiting.request)
            self._carry_out(waiting, decision)

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

    def _join(self, waiting: Waiting, replica: ReplicaState) -> None:
        replica.streams.add(waiting.stream)
        self._room.join(waiting, replica.id)
        self.cluster.changed()
        if replica.phase is Phase.READY:
            self._give_place(waiting, replica)
        else:
            waiting.waited_for_start = True

    def _give_place(self, waiting: Waiting, replica: ReplicaState) -> None:
        self._prospects.holds.began(waiting.stream, self.clock())
        address = self.cluster.servers[replica.server].grpc_address
        self._room.give_place(waiting, waiting.place_on(replica, address, self.epoch))

    def _serve_joined(self, replica: ReplicaState) -> None:
        """It can be used now."""
        for waiting in self._room.joined(replica.id):
            self._give_place(waiting, replica)

    # Ending

    def park_overdue(self) -> None:
        """Park what nobody has used within `keep_alive_s`."""
        if self.limits.keep_alive_s is not None:
            for replica in overdue(self.cluster.view(), self.clock(), self.limits.keep_alive_s):
                self.ends.evict(self.cluster.replicas[replica])

    async def close(self) -> None:
        """Stop deciding; replicas go on running and the next control loop adopts them."""
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
