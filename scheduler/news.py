"""What `server_watch.py` hears of servers, taken over into the control loop's picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from serverless_triton.scheduler.admission import Exactness, ReplicaId
from serverless_triton.scheduler.cluster import Cluster, ReplicaState, ServerState
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.departures import Departures
from serverless_triton.scheduler.ends import Ends
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.view import Phase

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class News:
    """The control loop's, on its asyncio loop."""

    cluster: Cluster
    ends: Ends
    departures: Departures
    metrics: ControlMetrics
    limits: ControlLimits
    is_ready: Callable[[ReplicaState], None]
    on_adopted: Callable[[ReplicaState], None] = field(default=lambda replica: None)

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
        self.cluster.changed(server=server.name)
        if settled and server.takes_starts:
            beyond = server.parked.beyond(limits.max_parked_per_server, limits.max_parked_bytes_per_server)
            for stub, model in [*died, *beyond]:
                self.departures.unload_parked(server, stub, model)

    def adopt(self, replica: ReplicaState) -> None:
        """A replica that an earlier scheduler started goes on serving, or loading: who asks for its model joins it."""
        replica.adopted = True
        logger.info("replica_adopted model=%s server=%s replica=%s", *replica.names)
        self.cluster.replicas[replica.id] = replica
        self.cluster.changed(replica=replica.id)
        self.cluster.keep_minimum(replica.model.name)
        self.on_adopted(replica)

    def shown_ready(self, replica_id: ReplicaId, exactness: Exactness | None) -> None:
        """What an earlier scheduler began has come to its end."""
        replica = self.cluster.replicas.get(replica_id)
        if replica is None or not replica.adopted or replica.phase is Phase.READY:
            return
        logger.info("replica_ready model=%s server=%s replica=%s", *replica.names)
        replica.phase, replica.exactness = Phase.READY, exactness
        self.cluster.changed(replica=replica.id, server=replica.server)
        self.cluster.keep_minimum(replica.model.name)
        self.is_ready(replica)
        self.ends.evict_leaving(replica)

    def lose(self, replica: ReplicaState, reason: str) -> None:
        """The replica ended though nobody asked it to."""
        logger.warning("replica_lost model=%s server=%s replica=%s reason=%s", *replica.names, reason)
        self.metrics.lost(replica.model.name)
        self.ends.forget(replica, reason)
        server = self.cluster.servers[replica.server]
        if server.takes_starts and replica.id not in server.parked:
            self.ends.clean_up(replica)
