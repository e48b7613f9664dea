"""The one decider (decision 6): who waits, what starts where, what is evicted; the only caller of effects.

Everything runs on one asyncio loop and all mutable state is this object's, so there are no locks. Its steps, after
every event (an admission, a finished stream, a start that ended, news of a server):

1. drop what is gone: replicas of a dead server, replicas their agent no longer shows;
2. for the waiting streams, in turn (`waiting_room.py`), ask the policy and do what it says; where it says wait, all
   that ask the same wait until something changes;
3. a start parks whom it evicts first (the agent confirms), then loads the engine and the stub at the same time, or the
   engine alone for a stub that is parked there;
4. when a start ends, everyone who joined it gets a place or its error.

What becomes of replicas whose model has changed or gone is `rollouts.py`'s, by `warm`, `retire` and `abandon`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from serverless_triton.scheduler.admission import Assignment, Outlook, ReplicaId, ServerName, StartRecord, StreamId
from serverless_triton.scheduler.cluster import Cluster, ReplicaState, ServerState
from serverless_triton.scheduler.control_limits import TRANSIENT, ControlLimits
from serverless_triton.scheduler.definitions import new_replica_id
from serverless_triton.scheduler.departures import Departures
from serverless_triton.scheduler.effects import EffectFailed, Effects, EngineStarted
from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed, ModelTooLarge
from serverless_triton.scheduler.identity import ANONYMOUS, Caller
from serverless_triton.scheduler.learned import LearnedModels
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.outlook import RETRY_AFTER_S, Prospects
from serverless_triton.scheduler.policy import Candidate, Decision, Refuse, Start, Use, choose, overdue, surplus
from serverless_triton.scheduler.start_sequence import StartSequence, permit, start_record
from serverless_triton.scheduler.view import Phase
from serverless_triton.scheduler.waiting_room import ModelOrder, OrderOf, Waiting, WaitingRoom

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
    _room: WaitingRoom = field(default_factory=WaitingRoom)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    departures: Departures = field(init=False)
    _prospects: Prospects = field(init=False)

    def __post_init__(self) -> None:
        self._prospects = Prospects(self.cluster, self.clock)
        self.departures = Departures(
            cluster=self.cluster, effects=self.effects, epoch=lambda: self.epoch, spawn=self._spawn
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
        self._suspect(avoid)
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
            self._suspect(frozenset({assignment.replica}))
        self._prospects.holds.ended(assignment.stream, assignment.model, self.clock())
        self._drop_reference(assignment.replica, assignment.stream)

    def _give_back(self, unused: Assignment) -> None:
        """As `finish`, for a place that says nothing about how long places are held."""
        self._prospects.holds.forget(unused.stream)
        self.finish(unused)

    def _suspect(self, replicas: frozenset[ReplicaId]) -> None:
        """A stream broke on them though nobody has reported their end: a stopped or unreachable process, say."""
        for replica in [self.cluster.replicas[name] for name in sorted(replicas) if name in self.cluster.replicas]:
            replica.suspect = True
            self.cluster.changed()
            self._evict_leaving(replica)

    def _evict_leaving(self, replica: ReplicaState) -> None:
        if replica.is_leaving and replica.view().is_idle:
            self._evict(replica)

    def _drop_reference(self, replica_id: ReplicaId, stream: StreamId) -> None:
        replica = self.cluster.replicas.get(replica_id)
        if replica is not None and stream in replica.streams:
            replica.streams.remove(stream)
            replica.idle_since_s = self.clock()
            self.cluster.changed()
            self._evict_leaving(replica)
            self.dispatch()

    async def warm(self, model: str, *, timeout_s: float, version: str = "") -> None:
        """A replica of the newest definition; those of older ones do not count, and are not stopped by it."""
        order, stream = self.order_of(model, version), StreamId(f"warm-{secrets.token_hex(8)}")
        older = frozenset(replica.id for replica in self.cluster.outdated(order.view))
        waiting = Waiting(stream=stream, order=order, since_s=self.clock(), avoid=older)
        self._give_back(await self._wait(waiting, timeout_s))

    def retire(self, replica: ReplicaState) -> None:
        """Nobody is sent to it any more; it goes when the last of its streams has ended."""
        logger.info("replica_retires model=%s server=%s replica=%s", *_names(replica))
        replica.retiring = True
        self.cluster.changed()
        self._evict_leaving(replica)

    def abandon(self, model: str, reason: str) -> None:
        """The model is gone: whoever waits for it hears why, and its replicas go as their streams end."""
        waited = self._room.turn_away(model, reason)
        for replica in [one for one in self.cluster.of_model(model) if not one.retiring]:
            self.retire(replica)
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
                self._forget(replica, "unloaded")
                await asyncio.wait({self._clean_up(replica)})
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
        for waiting in self._room.turns(self.cluster.version):
            decision = choose(self.cluster.view(), waiting.request)
            self._carry_out(waiting, decision)

    def _carry_out(self, waiting: Waiting, decision: Decision) -> None:
        action = decision.action
        if isinstance(action, Use):
            self._join(waiting, self.cluster.replicas[action.replica])
        elif isinstance(action, Start):
            self._join(waiting, self._begin_start(waiting.order, action.candidate))
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

    # Starting

    def _begin_start(self, order: ModelOrder, candidate: Candidate) -> ReplicaState:
        replica = ReplicaState(
            id=new_replica_id(order.view.name, order.view.definition),
            model=order.view,
            server=candidate.server,
            phase=Phase.LOADING,
            lost=asyncio.get_running_loop().create_future(),
            ready_at_s=self.clock() + candidate.estimate.total_s,
            reads_ssd=candidate.estimate.tier == "ssd",
        )
        for victim in [self.cluster.replicas[name] for name in candidate.evict]:
            victim.retiring |= victim.model.name == replica.model.name  # this one replaces it
            self._evict(victim)
        if candidate.parked is not None:
            self.cluster.servers[candidate.server].parked.drop(candidate.parked)
        self.cluster.replicas[replica.id] = replica
        self.cluster.changed()
        self._spawn(self._start(replica, order, candidate))
        return replica

    async def _start(self, replica: ReplicaState, order: ModelOrder, candidate: Candidate) -> None:
        began_s = self.clock()
        await self.departures.over(replica.server)
        room_s = self.clock()
        try:
            allowed = permit(self.epoch, replica.id, order, candidate)
            engine = await StartSequence(self.effects, self.clock).run(replica.server, allowed)
        except EffectFailed as error:
            self._start_failed(replica, error)
            return
        except Exception as error:
            logger.exception("start_broke model=%s server=%s replica=%s", *_names(replica))
            self._start_failed(replica, EffectFailed("INTERNAL", f"{type(error).__name__}: {error}"))
            return
        self._started(replica, candidate, engine, start_record(engine, candidate.estimate, began_s, room_s))

    def _started(self, replica: ReplicaState, candidate: Candidate, engine: EngineStarted, record: StartRecord) -> None:
        if replica.id not in self.cluster.replicas:  # lost meanwhile; whoever waited has been sent on
            self._clean_up(replica)
            return
        replica.phase, replica.start, replica.exactness = Phase.READY, record, engine.exactness
        replica.shown_from_version, replica.idle_since_s = engine.version, self.clock()
        actual_s = self.clock() - record.spans[0].end_s
        self.cluster.servers[replica.server].learn(candidate.estimate, engine.tier, actual_s)
        if replica.model.foreign:
            self._learn(replica, actual_s, engine.host_bytes)
        self.metrics.started(replica.model.name, record.state, engine.tier, actual_s)
        logger.info("replica_ready model=%s server=%s replica=%s s=%.3f", *_names(replica), actual_s)
        self.cluster.changed()
        for waiting in self._room.joined(replica.id):
            self._give_place(waiting, replica)
        self._evict_leaving(replica)
        self.dispatch()

    def _learn(self, replica: ReplicaState, load_s: float, host_bytes: int | None) -> None:
        """From a foreign model's load. Where it took more than was known of, idle replicas go."""
        replica.model = self.learned.loaded(replica.model, load_s, host_bytes)
        self.cluster.changed()
        for victim in surplus(self.cluster.view(), replica.server):
            self._evict(self.cluster.replicas[victim])

    def _start_failed(self, replica: ReplicaState, error: EffectFailed) -> None:
        logger.warning(
            "start_failed model=%s server=%s replica=%s code=%s error=%s", *_names(replica), error.code, error
        )
        self.metrics.start_failed(replica.model.name, error.code)
        self._forget(replica, str(error), error.code)
        self._clean_up(replica)
        self.dispatch()

    def _send_on(self, waiting: Waiting, server: ServerName, error: LoadFailed) -> None:
        """A start that this stream had joined is over without a replica."""
        is_last = waiting.failed_starts + 1 >= self.limits.max_failed_starts
        if error.code in TRANSIENT:
            error.retry_after_s = RETRY_AFTER_S
        if error.code in TRANSIENT and not is_last:
            waiting.failed_starts += 1
            self._room.part(waiting, waiting.elsewhere(server, len(self.cluster.servers)))
        else:
            self._room.give_error(waiting, error)

    # Ending

    def _forget(self, replica: ReplicaState, reason: str, code: str = "UNAVAILABLE", *, parks: bool = False) -> None:
        """The replica is gone. Its streams hear of it, those that waited for it go elsewhere."""
        if self.cluster.replicas.pop(replica.id, None) is None:
            return
        self.cluster.changed()
        self.departures.note(replica.id, parks=parks)
        if not replica.lost.done():
            replica.lost.set_result(reason)
        for waiting in self._room.joined(replica.id):
            self._send_on(waiting, replica.server, LoadFailed(reason, code))

    def _evict(self, replica: ReplicaState) -> asyncio.Task[None]:
        """Nobody is sent to it from now on. Its room counts when the agent confirms, which the task waits for.

        Its stub is parked, but not where a stream broke on it, since the stub may be what hangs, nor where its model
        has changed. Other backends' models have none.
        """
        parks = not replica.is_leaving and not replica.model.foreign
        self._forget(replica, "evicted", parks=parks)
        self.metrics.evicted(replica.model.name)
        logger.info("evict model=%s server=%s replica=%s", *_names(replica))
        return self.departures.park(replica.server, replica.id) if parks else self._clean_up(replica)

    def park_overdue(self) -> None:
        """Park what nobody has used within `keep_alive_s`."""
        if self.limits.keep_alive_s is not None:
            for replica in overdue(self.cluster.view(), self.clock(), self.limits.keep_alive_s):
                self._evict(self.cluster.replicas[replica])

    def _clean_up(self, replica: ReplicaState) -> asyncio.Task[None]:
        if replica.model.foreign:
            return self.departures.end_foreign(replica.server, replica.id, replica.model.models)
        return self.departures.release(replica.server, replica.id, replica.model.name)

    # News, from server_watch.py

    def knows(self, replica_id: ReplicaId) -> bool:
        """Whether the replica is one of ours, or was until it ended."""
        return replica_id in self.cluster.replicas or self.departures.knows(replica_id)

    def parked(
        self,
        server: ServerState,
        stubs: Mapping[ReplicaId, str],
        private_bytes: Mapping[ReplicaId, int] | None = None,
        *,
        settled: bool = True,
    ) -> None:
        """The stubs there that wait for an engine, their models, and the memory that each holds; not yet all of them
        where nothing is settled.

        Triton does not notice that one has died, so it is told to unload it, as those that are too many.
        """
        died = server.parked.shown(stubs, private_bytes or {})
        limits = self.limits
        self.cluster.changed()
        if settled and server.takes_starts:
            beyond = server.parked.beyond(limits.max_parked_per_server, limits.max_parked_bytes_per_server)
            for stub, model in [*died, *beyond]:
                self.departures.unload_parked(server, stub, model)

    def adopt(self, replica: ReplicaState) -> None:
        """A replica that an earlier scheduler started goes on serving."""
        logger.info("replica_adopted model=%s server=%s replica=%s", *_names(replica))
        self.cluster.replicas[replica.id] = replica
        self.cluster.changed()

    def lose(self, replica: ReplicaState, reason: str) -> None:
        """News: the replica ended though nobody asked it to."""
        logger.warning("replica_lost model=%s server=%s replica=%s reason=%s", *_names(replica), reason)
        self.metrics.lost(replica.model.name)
        self._forget(replica, reason)
        server = self.cluster.servers[replica.server]
        if server.takes_starts and replica.id not in server.parked:
            self._clean_up(replica)

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


def _names(replica: ReplicaState) -> tuple[str, str, str]:
    return replica.model.name, replica.server, replica.id
