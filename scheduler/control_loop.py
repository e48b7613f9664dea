"""The one decider (decision 6): who waits, what starts where, what is evicted; the only caller of effects.

Everything runs on one asyncio loop and all mutable state is this object's, so there are no locks. Its steps, after
every event (an admission, a finished stream, a start that ended, news of a server):

1. drop what is gone: replicas of a dead server, replicas their agent no longer shows;
2. for each waiting stream, oldest first, ask the policy and do what it says;
3. a start evicts first (the agent confirms), then loads the engine and the stub at the same time;
4. when a start ends, everyone who joined it gets a place or its error.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from serverless_triton.scheduler.admission import (
    ADMISSION_SPAN,
    Assignment,
    ReplicaId,
    ServerName,
    Span,
    StartRecord,
    StreamId,
)
from serverless_triton.scheduler.cluster import Cluster, ReplicaState
from serverless_triton.scheduler.effects import EffectFailed, Effects, EngineOrder, EngineStarted
from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed, ModelTooLarge, NoCapacity
from serverless_triton.scheduler.estimator import learn_fixed_cost
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.policy import Candidate, Decision, Refuse, Start, StartRequest, Use, choose
from serverless_triton.scheduler.view import Phase
from serverless_triton.scheduler.waiting_room import ModelOrder, Waiting, WaitingRoom

logger = logging.getLogger(__name__)

# A start that failed for these reasons may go well on another server; any other failure is the model's own.
TRANSIENT = frozenset({"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"})
REMEMBERED_ENDS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlLimits:
    """How much may wait, and how often a start is tried elsewhere."""

    max_waiting_per_model: int = 1024
    max_failed_starts: int = 3


@dataclass(slots=True)
class ControlLoop:
    """Implements `Admission` for gateways of this process; server news comes through `server_watch.py`."""

    cluster: Cluster
    effects: Effects
    order_of: Callable[[str], ModelOrder]  # raises UnknownModel and its kin
    clock: Callable[[], float]
    metrics: ControlMetrics
    limits: ControlLimits = ControlLimits()
    epoch: int = 1
    _room: WaitingRoom = field(default_factory=WaitingRoom)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _releasing: dict[ServerName, dict[ReplicaId, asyncio.Task[None]]] = field(default_factory=lambda: defaultdict(dict))
    _ended: OrderedDict[ReplicaId, None] = field(default_factory=OrderedDict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    # Admission

    async def admit(
        self, stream: StreamId, model: str, *, timeout_s: float, avoid: frozenset[ReplicaId] = frozenset()
    ) -> Assignment:
        order = self.order_of(model)
        self._suspect(avoid)
        if self._room.by_model()[model] >= self.limits.max_waiting_per_model:
            raise NoCapacity(
                f"{self.limits.max_waiting_per_model} requests for model '{model}' wait already; try later"
            )
        place: asyncio.Future[Assignment] = asyncio.get_running_loop().create_future()
        request = StartRequest(model=order.view, avoid=avoid)
        waiting = Waiting(stream=stream, request=request, order=order, since_s=self.clock(), place=place)
        self._room.enter(waiting)
        try:
            self.dispatch()
            await asyncio.wait({place}, timeout=timeout_s)
            if place.done():
                return place.result()
            raise AdmissionTimeout(f"model '{model}' did not start within {timeout_s:.0f} s")
        except asyncio.CancelledError:
            if place.done() and place.exception() is None:
                self.finish(place.result())  # given in the very moment that nobody wanted it any more
            raise
        finally:
            self._leave(waiting)

    def _leave(self, waiting: Waiting) -> None:
        if self._room.leave(waiting) and waiting.joined is not None:
            self._drop_reference(waiting.joined, waiting.stream)

    def finish(self, assignment: Assignment) -> None:
        self._drop_reference(assignment.replica, assignment.stream)

    def _suspect(self, replicas: frozenset[ReplicaId]) -> None:
        """A stream broke on them though nobody has reported their end: a stopped or unreachable process, say."""
        for replica in [self.cluster.replicas[name] for name in sorted(replicas) if name in self.cluster.replicas]:
            replica.suspect = True
            self.cluster.changed()
            self._evict_suspect(replica)

    def _evict_suspect(self, replica: ReplicaState) -> None:
        if replica.suspect and replica.view().is_idle:
            self._evict(replica)

    def _drop_reference(self, replica_id: ReplicaId, stream: StreamId) -> None:
        replica = self.cluster.replicas.get(replica_id)
        if replica is not None and stream in replica.streams:
            replica.streams.remove(stream)
            replica.idle_since_s = self.clock()
            self.cluster.changed()
            self._evict_suspect(replica)
            self.dispatch()

    async def warm(self, model: str, *, timeout_s: float) -> None:
        stream = StreamId(f"warm-{secrets.token_hex(8)}")
        self.finish(await self.admit(stream, model, timeout_s=timeout_s))

    async def release(self, model: str, *, timeout_s: float) -> None:
        self.order_of(model)
        replicas = [r for r in self.cluster.replicas.values() if r.model.name == model]
        try:
            await asyncio.wait_for(asyncio.gather(*(self._release_when_idle(r) for r in replicas)), timeout_s)
        except asyncio.TimeoutError as error:
            raise AdmissionTimeout(f"model '{model}' still has streams after {timeout_s:.0f} s") from error

    async def _release_when_idle(self, replica: ReplicaState) -> None:
        while replica.id in self.cluster.replicas:
            if replica.view().is_idle:
                await asyncio.wait({self._evict(replica)})
                return
            await self._changed.wait()

    def ready_models(self) -> frozenset[str]:
        return frozenset(r.model.name for r in self.cluster.replicas.values() if r.phase is Phase.READY)

    def waiting_by_model(self) -> dict[str, int]:
        """How many streams wait for a place, by model."""
        return dict(self._room.by_model())

    # Deciding

    def dispatch(self) -> None:
        """Ask the policy for everyone who waits without having joined a start, oldest first."""
        self._changed.set()
        self._changed = asyncio.Event()
        for waiting in self._room.unplaced():
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

    def _join(self, waiting: Waiting, replica: ReplicaState) -> None:
        replica.streams.add(waiting.stream)
        self.cluster.changed()
        if replica.phase is Phase.READY:
            self._give_place(waiting, replica)
        else:
            waiting.joined, waiting.waited_for_start = replica.id, True

    def _give_place(self, waiting: Waiting, replica: ReplicaState) -> None:
        start = replica.start if waiting.waited_for_start else None
        if start is not None:
            decided = Span(
                name="schedule", start_s=waiting.since_s, end_s=start.spans[0].start_s, parent=ADMISSION_SPAN
            )
            start = replace(start, spans=(decided, *start.spans))
        place = Assignment(
            stream=waiting.stream,
            model=replica.model.name,
            server=replica.server,
            grpc_address=self.cluster.servers[replica.server].grpc_address,
            replica=replica.id,
            epoch=self.epoch,
            start=start,
            lost=replica.lost,
        )
        self._room.give_place(waiting, place)

    # Starting

    def _begin_start(self, order: ModelOrder, candidate: Candidate) -> ReplicaState:
        replica = ReplicaState(
            id=ReplicaId(f"{order.view.name}-{secrets.token_hex(6)}"),
            model=order.view,
            server=candidate.server,
            phase=Phase.LOADING,
            lost=asyncio.get_running_loop().create_future(),
            reads_ssd=candidate.estimate.tier == "ssd",
        )
        for victim in candidate.evict:
            self._evict(self.cluster.replicas[victim])
        self.cluster.replicas[replica.id] = replica
        self.cluster.changed()
        self._spawn(self._start(replica, order, candidate))
        return replica

    async def _start(self, replica: ReplicaState, order: ModelOrder, candidate: Candidate) -> None:
        began_s = self.clock()
        if self._releasing[replica.server]:  # whatever is being released there holds memory, and unloads by model name
            await asyncio.wait(set(self._releasing[replica.server].values()))
        room_s = self.clock()
        try:
            engine = await self._start_both(replica, order)
        except EffectFailed as error:
            self._start_failed(replica, error)
            return
        except Exception as error:
            logger.exception("start_broke model=%s server=%s replica=%s", *_names(replica))
            self._start_failed(replica, EffectFailed("INTERNAL", f"{type(error).__name__}: {error}"))
            return
        spans = (Span(name="make_room", start_s=began_s, end_s=room_s, parent=ADMISSION_SPAN), *engine.spans)
        record = StartRecord(tier=engine.tier, bytes=engine.bytes, predicted_s=candidate.estimate.total_s, spans=spans)
        self._started(replica, candidate, engine, record)

    async def _start_both(self, replica: ReplicaState, order: ModelOrder) -> EngineStarted:
        """Engine and stub at the same time: the stub's own start hides behind the weights, or they behind it."""
        server, model = replica.server, replica.model.name
        permit = EngineOrder(epoch=self.epoch, replica=replica.id, model=model, parameters=order.parameters)
        engine, stub = await asyncio.gather(
            self.effects.start_engine(server, permit),
            self._timed_load(server, model, replica.id),
            return_exceptions=True,
        )
        for outcome in (engine, stub):  # the engine's own error says more than the stub's
            if isinstance(outcome, BaseException):
                raise outcome
        assert isinstance(engine, EngineStarted)
        assert isinstance(stub, Span)
        return replace(engine, spans=(*engine.spans, *_without_waiting(stub, engine)))

    async def _timed_load(self, server: ServerName, model: str, replica: ReplicaId) -> Span:
        start_s = self.clock()
        await self.effects.load_model(server, model, replica)
        return Span(name="triton.load", start_s=start_s, end_s=self.clock(), parent=ADMISSION_SPAN)

    def _started(self, replica: ReplicaState, candidate: Candidate, engine: EngineStarted, record: StartRecord) -> None:
        if replica.id not in self.cluster.replicas:  # lost meanwhile; whoever waited has been sent on
            self._clean_up(replica)
            return
        replica.phase, replica.start = Phase.READY, record
        replica.shown_from_version, replica.idle_since_s = engine.version, self.clock()
        server = self.cluster.servers[replica.server]
        actual_s = self.clock() - record.spans[0].end_s
        if engine.tier == candidate.estimate.tier:  # bytes that came from elsewhere say nothing about this estimate
            known_s = server.fixed_start_s[engine.tier]
            server.fixed_start_s[engine.tier] = learn_fixed_cost(known_s, candidate.estimate, actual_s)
        self.metrics.started(replica.model.name, engine.tier, actual_s)
        logger.info("replica_ready model=%s server=%s replica=%s s=%.3f", *_names(replica), actual_s)
        self.cluster.changed()
        for waiting in self._room.joined(replica.id):
            self._give_place(waiting, replica)
        self.dispatch()

    def _start_failed(self, replica: ReplicaState, error: EffectFailed) -> None:
        logger.warning(
            "start_failed model=%s server=%s replica=%s code=%s error=%s", *_names(replica), error.code, error
        )
        self.metrics.start_failed(replica.model.name, error.code)
        self._forget(replica, str(error), error.code)
        self._clean_up(replica)
        self.dispatch()

    def _send_on(self, waiting: Waiting, replica: ReplicaState, reason: str, code: str) -> None:
        """A start that this stream had joined is over without a replica."""
        waiting.joined = None
        waiting.failed_starts += 1
        if code not in TRANSIENT or waiting.failed_starts >= self.limits.max_failed_starts:
            self._room.give_error(waiting, LoadFailed(reason, code))
            return
        avoid = waiting.request.avoid_servers | {replica.server}
        if len(avoid) >= len(self.cluster.servers):
            avoid = frozenset()  # nowhere else to go: try again where it failed first
        waiting.request = replace(waiting.request, avoid_servers=avoid)

    # Ending

    def _forget(self, replica: ReplicaState, reason: str, code: str = "UNAVAILABLE") -> None:
        """The replica is gone. Its streams hear of it, those that waited for it go elsewhere."""
        if self.cluster.replicas.pop(replica.id, None) is None:
            return
        self.cluster.changed()
        self._ended[replica.id] = None
        while len(self._ended) > REMEMBERED_ENDS:
            self._ended.popitem(last=False)
        if not replica.lost.done():
            replica.lost.set_result(reason)
        for waiting in self._room.joined(replica.id):
            self._send_on(waiting, replica, reason, code)

    def _evict(self, replica: ReplicaState) -> asyncio.Task[None]:
        """Nobody is sent to it from now on. Its room counts when the agent confirms, which the task waits for."""
        self._forget(replica, "evicted")
        self.metrics.evicted(replica.model.name)
        logger.info("evict model=%s server=%s replica=%s", *_names(replica))
        return self._clean_up(replica)

    def _clean_up(self, replica: ReplicaState) -> asyncio.Task[None]:
        """End the engine, then begin Triton's unload, which takes a second more and holds no engine memory."""
        return self._release_engine(replica.server, replica.id, replica.model.name)

    def _release_engine(self, server: ServerName, replica: ReplicaId, model: str) -> asyncio.Task[None]:
        task = self._spawn(self._release_and_unload(server, replica, model))
        self._releasing[server][replica] = task
        task.add_done_callback(lambda _: self._releasing[server].pop(replica, None))
        return task

    async def _release_and_unload(self, server: ServerName, replica: ReplicaId, model: str) -> None:
        """An unload names only the model: where a newer replica is there or on its way, its load replaced this one."""
        try:
            await self.effects.release_engine(server, replica, self.epoch)
            if not any(other.model.name == model for other in self.cluster.on_server(server)):
                await self.effects.unload_model(server, model)
        except EffectFailed as error:
            logger.warning("release_failed model=%s server=%s replica=%s error=%s", model, server, replica, error)

    # News, from server_watch.py

    def knows(self, replica_id: ReplicaId) -> bool:
        """Whether the replica is one of ours, or was until it ended."""
        return replica_id in self.cluster.replicas or replica_id in self._ended

    def still_there(self, server: ServerName, replica: ReplicaId, model: str) -> None:
        """An agent shows a replica that ended here: its release did not reach the agent, so it is asked for again."""
        if replica in self._ended and replica not in self._releasing[server]:
            logger.warning("release_again model=%s server=%s replica=%s", model, server, replica)
            self._release_engine(server, replica, model)

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
        if self.cluster.servers[replica.server].takes_starts:
            self._clean_up(replica)

    async def close(self) -> None:
        """Stop deciding; replicas go on running and the next control loop adopts them."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiting in self._room.everyone():
            self._room.give_error(waiting, LoadFailed("the scheduler is shutting down"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _without_waiting(load: Span, engine: EngineStarted) -> tuple[Span, ...]:
    """Triton's load, less the part in which its stub only waited for the engine: that part the engine gated."""
    if engine.stub_waited_from_s is None:
        return (load,)
    waited_until_s = max((span.end_s for span in engine.spans), default=load.start_s)
    return (replace(load, end_s=engine.stub_waited_from_s), replace(load, name="triton.ready", start_s=waited_until_s))


def _names(replica: ReplicaState) -> tuple[str, str, str]:
    return replica.model.name, replica.server, replica.id
