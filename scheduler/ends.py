"""How replicas end: who hears of it, who waited for them and goes elsewhere, and what becomes of what they held.

The effects themselves, and the memory of who has ended, are `departures.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.cluster import Cluster, ReplicaState
from serverless_triton.scheduler.control_limits import TRANSIENT, ControlLimits
from serverless_triton.scheduler.departures import Departures
from serverless_triton.scheduler.errors import LoadFailed
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.outlook import RETRY_AFTER_S
from serverless_triton.scheduler.waiting_room import Waiting, WaitingRoom

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Ends:
    """The control loop's, on its asyncio loop. None of it lets anybody have what became free: that is `dispatch`."""

    cluster: Cluster
    room: WaitingRoom
    departures: Departures
    metrics: ControlMetrics
    limits: ControlLimits

    def forget(self, replica: ReplicaState, reason: str, code: str = "UNAVAILABLE", *, parks: bool = False) -> None:
        """The replica is gone. Its streams hear of it, those that waited for it go elsewhere."""
        if self.cluster.replicas.pop(replica.id, None) is None:
            return
        self.cluster.changed(replica=replica.id)
        self.cluster.keep_minimum(replica.model.name)
        self.departures.note(replica.id, parks=parks)
        if not replica.lost.done():
            replica.lost.set_result(reason)
        for waiting in self.room.joined(replica.id):
            self._send_on(waiting, replica.server, LoadFailed(reason, code))

    def _send_on(self, waiting: Waiting, server: ServerName, error: LoadFailed) -> None:
        """A start that this stream had joined is over without a replica."""
        is_last = waiting.failed_starts + 1 >= self.limits.max_failed_starts
        if error.code in TRANSIENT:
            error.retry_after_s = RETRY_AFTER_S
        if error.code in TRANSIENT and not is_last:
            waiting.failed_starts += 1
            self.room.part(waiting, waiting.elsewhere(server, len(self.cluster.servers)))
        else:
            self.room.give_error(waiting, error)

    def evict(self, replica: ReplicaState, reason: str = "evicted") -> asyncio.Task[None]:
        """Nobody is sent to it from now on, and those whom it serves hear the reason. Its room counts when the agent
        confirms, which the task waits for.

        Its stub is parked, but not where a stream broke on it, since the stub may be what hangs, nor where its model
        has changed. Other backends' models have none.
        """
        parks = not replica.is_leaving and not replica.model.foreign
        self.forget(replica, reason, parks=parks)
        self.metrics.evicted(replica.model.name)
        logger.info("evict model=%s server=%s replica=%s reason=%s", *replica.names, reason)
        return self.departures.park(replica.server, replica.id) if parks else self.clean_up(replica)

    def evict_leaving(self, replica: ReplicaState) -> None:
        """Once nobody uses it."""
        if replica.is_leaving and replica.view().is_idle:
            self.evict(replica)

    def suspect(self, replicas: frozenset[ReplicaId]) -> None:
        """A stream broke on them though nobody has reported their end: a stopped or unreachable process, say."""
        for replica in [self.cluster.replicas[name] for name in sorted(replicas) if name in self.cluster.replicas]:
            replica.suspect = True
            self.cluster.changed(replica=replica.id)
            self.evict_leaving(replica)

    def retire(self, replica: ReplicaState) -> None:
        """Nobody is sent to it any more; it goes when the last of its streams has ended."""
        logger.info("replica_retires model=%s server=%s replica=%s", *replica.names)
        replica.retiring = True
        self.cluster.changed(replica=replica.id)
        self.evict_leaving(replica)

    def clean_up(self, replica: ReplicaState) -> asyncio.Task[None]:
        """Whatever there is of it on its server."""
        if replica.model.foreign:
            return self.departures.end_foreign(replica.server, replica.id, replica.model.models)
        return self.departures.release(replica.server, replica.id, replica.model.name)
