"""How replicas start: room is made, the engine and its stub come, and everyone who joined the start hears how it ended.

Where a start goes is the policy's to say, what it does to the world `start_sequence.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from serverless_triton.scheduler.admission import StartRecord
from serverless_triton.scheduler.calibration import ObservedStart
from serverless_triton.scheduler.cluster import Cluster, Read, ReplicaState
from serverless_triton.scheduler.definitions import new_replica_id
from serverless_triton.scheduler.departures import Departures, Work
from serverless_triton.scheduler.effects import EffectFailed, Effects, EngineStarted
from serverless_triton.scheduler.ends import Ends
from serverless_triton.scheduler.estimator import StartEstimate
from serverless_triton.scheduler.learned import LearnedModels
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.policy import Candidate, surplus
from serverless_triton.scheduler.start_sequence import (
    StartSequence,
    actual_terms,
    permit,
    read_s_of,
    start_record,
)
from serverless_triton.scheduler.view import Phase
from serverless_triton.scheduler.waiting_room import ModelOrder

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Starts:
    """The control loop's, on its asyncio loop. `is_ready` hears of a replica that can be used, `dispatch` runs after
    every start, `epoch` is the permits' at that moment, `spawn` owns the tasks.
    """

    cluster: Cluster
    effects: Effects
    ends: Ends
    departures: Departures
    learned: LearnedModels
    metrics: ControlMetrics
    clock: Callable[[], float]
    epoch: Callable[[], int]
    spawn: Callable[[Work], asyncio.Task[None]]
    is_ready: Callable[[ReplicaState], None]
    dispatch: Callable[[], None]

    def begin(self, order: ModelOrder, candidate: Candidate) -> ReplicaState:
        """The replica is there at once, LOADING, and whom it needs the room of is on the way out."""
        replica = ReplicaState(
            id=new_replica_id(order.view.name, order.view.definition),
            model=order.view,
            server=candidate.server,
            phase=Phase.LOADING,
            lost=asyncio.get_running_loop().create_future(),
            ready_at_s=self.clock() + candidate.estimate.total_s,
            read=_read_ahead(candidate.estimate, order.view.checkpoint_bytes, self.clock()),
        )
        self._make_room(replica, candidate)
        if candidate.parked is not None:
            self.cluster.servers[candidate.server].parked.drop(candidate.parked)
        self.cluster.replicas[replica.id] = replica
        self.cluster.changed(replica=replica.id, server=replica.server)
        self.cluster.keep_minimum(replica.model.name)
        self.spawn(self._start(replica, order, candidate))
        return replica

    def _make_room(self, replica: ReplicaState, candidate: Candidate) -> None:
        for victim in [self.cluster.replicas[name] for name in candidate.evict]:
            victim.retiring |= victim.model.name == replica.model.name  # this one replaces it
            self.ends.evict(victim)
        for preempted in [self.cluster.replicas[name] for name in candidate.preempt]:
            self.ends.evict(preempted, "preempted")

    async def _start(self, replica: ReplicaState, order: ModelOrder, candidate: Candidate) -> None:
        began_s = self.clock()
        await self.departures.over(replica.server)
        room_s = self.clock()
        if candidate.evict:
            self.cluster.calibration.observe_parking(replica.server, room_s - began_s)
            self.cluster.changed(server=replica.server)
        try:
            allowed = permit(self.epoch(), replica.id, order, candidate)
            engine = await StartSequence(self.effects, self.clock).run(replica.server, allowed)
        except EffectFailed as error:
            self._failed(replica, error)
            return
        except Exception as error:
            logger.exception("start_broke model=%s server=%s replica=%s", *replica.names)
            self._failed(replica, EffectFailed("INTERNAL", f"{type(error).__name__}: {error}"))
            return
        attach_s = self.cluster.calibration.attach_s(replica.server, engine.tier)
        actual = actual_terms(engine, room_s=room_s - began_s, total_s=self.clock() - began_s, attach_s=attach_s)
        record = start_record(engine, candidate.estimate, actual, began_s, room_s)
        self._started(replica, candidate, engine, record)

    def _started(self, replica: ReplicaState, candidate: Candidate, engine: EngineStarted, record: StartRecord) -> None:
        replica.read = None
        if replica.id not in self.cluster.replicas:  # lost meanwhile; whoever waited has been sent on
            self.ends.clean_up(replica)
            return
        replica.phase, replica.start, replica.exactness = Phase.READY, record, engine.exactness
        replica.shown_from_version, replica.idle_since_s = engine.version, self.clock()
        actual_s = self.clock() - record.spans[0].end_s
        self._observe(replica, candidate, engine, actual_s)
        if record.comparison is not None:
            self.metrics.estimated(record.state, engine.tier, record.comparison.relative_error)
        if replica.model.foreign:
            self._learn(replica, actual_s, engine.host_bytes)
        self.cluster.keep_minimum(replica.model.name)
        self.metrics.started(replica.model.name, record.state, engine.tier, actual_s)
        logger.info("replica_ready model=%s server=%s replica=%s s=%.3f", *replica.names, actual_s)
        self.cluster.changed(replica=replica.id, server=replica.server)
        self.is_ready(replica)
        self.ends.evict_leaving(replica)
        self.dispatch()

    def _observe(self, replica: ReplicaState, candidate: Candidate, engine: EngineStarted, actual_s: float) -> None:
        """What a start took, once its room was there, for the estimates of later ones."""
        calibration, server, model = self.cluster.calibration, replica.server, replica.model
        read_s, queue_s = read_s_of(engine.spans)
        expected_s = candidate.estimate.transfer_s if engine.tier == candidate.estimate.tier else 0.0
        calibration.observe_start(
            ObservedStart(
                server=server,
                model=model.name,
                state=candidate.estimate.state,
                tier=engine.tier,
                bytes=engine.bytes or model.checkpoint_bytes,
                read_s=read_s,
                rest_s=max(0.0, actual_s - queue_s - (expected_s if read_s is None else read_s)),
            )
        )

    def _learn(self, replica: ReplicaState, load_s: float, host_bytes: int | None) -> None:
        """From a foreign model's load. Where it took more than was known of, idle replicas go."""
        replica.model = self.learned.loaded(replica.model, load_s, host_bytes)
        self.cluster.changed(replica=replica.id)
        for victim in surplus(self.cluster.view(), replica.server):
            self.ends.evict(self.cluster.replicas[victim])

    def _failed(self, replica: ReplicaState, error: EffectFailed) -> None:
        words = (*replica.names, error.code, error)
        logger.warning("start_failed model=%s server=%s replica=%s code=%s error=%s", *words)
        self.metrics.start_failed(replica.model.name, error.code)
        self.ends.forget(replica, str(error), error.code)
        self.ends.clean_up(replica)
        self.dispatch()


def _read_ahead(estimate: StartEstimate, size_bytes: int, now_s: float) -> Read | None:
    """What a start puts on its server's load queue, if anything."""
    if estimate.tier not in ("ssd", "remote") or estimate.transfer_s <= 0.0:
        return None
    begins_s = now_s + estimate.room_s + estimate.queue_s
    return Read(tier=estimate.tier, bytes=size_bytes, begins_s=begins_s, ends_s=begins_s + estimate.transfer_s)
