"""What `server_watch.py` hears of servers, taken over into the control loop's picture."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from serverless_triton.scheduler.admission import ReplicaId
from serverless_triton.scheduler.cluster import Cluster, ReplicaState, ServerState
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.departures import Departures
from serverless_triton.scheduler.ends import Ends
from serverless_triton.scheduler.metrics import ControlMetrics

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class News:
    """The control loop's, on its asyncio loop."""

    cluster: Cluster
    ends: Ends
    departures: Departures
    metrics: ControlMetrics
    limits: ControlLimits

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
        logger.info("replica_adopted model=%s server=%s replica=%s", *replica.names)
        self.cluster.replicas[replica.id] = replica
        self.cluster.changed()

    def lose(self, replica: ReplicaState, reason: str) -> None:
        """The replica ended though nobody asked it to."""
        logger.warning("replica_lost model=%s server=%s replica=%s reason=%s", *replica.names, reason)
        self.metrics.lost(replica.model.name)
        self.ends.forget(replica, reason)
        server = self.cluster.servers[replica.server]
        if server.takes_starts and replica.id not in server.parked:
            self.ends.clean_up(replica)
