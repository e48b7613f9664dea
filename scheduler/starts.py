"""How replicas start: room is made, the engine and its stub come, and everyone who joined the start hears how it ended.

Where a start goes is the policy's to say, what it does to the world `start_sequence.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from serverless_triton.scheduler.admission import StartRecord
from serverless_triton.scheduler.cluster import Cluster, ReplicaState
from serverless_triton.scheduler.definitions import new_replica_id
from serverless_triton.scheduler.departures import Departures, Work
from serverless_triton.scheduler.effects import EffectFailed, Effects, EngineStarted
from serverless_triton.scheduler.ends import Ends
from serverless_triton.scheduler.learned import LearnedModels
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.policy import Candidate, surplus
from serverless_triton.scheduler.start_sequence import StartSequence, permit, start_record
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
            reads_ssd=candidate.estimate.tier == "ssd",
        )
        for victim in [self.cluster.replicas[name] for name in candidate.evict]:
            victim.retiring |= victim.model.name == replica.model.name  # this one replaces it
            self.ends.evict(victim)
        if candidate.parked is not None:
            self.cluster.servers[candidate.server].parked.drop(candidate.parked)
        self.cluster.replicas[replica.id] = replica
        self.cluster.changed()
        self.spawn(self._start(replica, order, candidate))
        return replica

    async def _start(self, replica: ReplicaState, order: ModelOrder, candidate: Candidate) -> None:
        began_s = self.clock()
        await self.departures.over(replica.server)
        room_s = self.clock()
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
        self._started(replica, candidate, engine, start_record(engine, candidate.estimate, began_s, room_s))

    def _started(self, replica: ReplicaState, candidate: Candidate, engine: EngineStarted, record: StartRecord) -> None:
        if replica.id not in self.cluster.replicas:  # lost meanwhile; whoever waited has been sent on
            self.ends.clean_up(replica)
            return
        replica.phase, replica.start, replica.exactness = Phase.READY, record, engine.exactness
        replica.shown_from_version, replica.idle_since_s = engine.version, self.clock()
        actual_s = self.clock() - record.spans[0].end_s
        self.cluster.servers[replica.server].learn(candidate.estimate, engine.tier, actual_s)
        if replica.model.foreign:
            self._learn(replica, actual_s, engine.host_bytes)
        self.metrics.started(replica.model.name, record.state, engine.tier, actual_s)
        logger.info("replica_ready model=%s server=%s replica=%s s=%.3f", *replica.names, actual_s)
        self.cluster.changed()
        self.is_ready(replica)
        self.ends.evict_leaving(replica)
        self.dispatch()

    def _learn(self, replica: ReplicaState, load_s: float, host_bytes: int | None) -> None:
        """From a foreign model's load. Where it took more than was known of, idle replicas go."""
        replica.model = self.learned.loaded(replica.model, load_s, host_bytes)
        self.cluster.changed()
        for victim in surplus(self.cluster.view(), replica.server):
            self.ends.evict(self.cluster.replicas[victim])

    def _failed(self, replica: ReplicaState, error: EffectFailed) -> None:
        words = (*replica.names, error.code, error)
        logger.warning("start_failed model=%s server=%s replica=%s code=%s error=%s", *words)
        self.metrics.start_failed(replica.model.name, error.code)
        self.ends.forget(replica, str(error), error.code)
        self.ends.clean_up(replica)
        self.dispatch()
