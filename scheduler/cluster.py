"""The control loop's own, mutable picture of servers and replicas, and the frozen view it gives the policy."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from serverless_triton.scheduler.admission import (
    Exactness,
    ReplicaId,
    ServerName,
    StartRecord,
    StartState,
    StreamId,
)
from serverless_triton.scheduler.estimator import StartEstimate, learn_fixed_cost
from serverless_triton.scheduler.parked import ParkedStubs
from serverless_triton.scheduler.view import (
    Bandwidth,
    ClusterView,
    DeviceView,
    FixedStarts,
    ModelView,
    Phase,
    ReplicaView,
    ServerView,
)
from serverless_triton.scheduler.view_index import ViewIndex

# Before a store has measured its own: a gigabit's link, a slow SSD, DRAM as copied by one core.
ASSUMED_BANDWIDTH: Bandwidth = {"remote": 1e8, "ssd": 1e9, "dram": 20e9}
ASSUMED_FIXED_START_S: FixedStarts = {
    "cold": {"dram": 0.25, "ssd": 0.1},
    "parked": {"dram": 0.06, "ssd": 0.06},
}


def _assumed_fixed_starts() -> dict[StartState, dict[str, float]]:
    return {state: dict(by_tier) for state, by_tier in ASSUMED_FIXED_START_S.items()}


@dataclass(slots=True, kw_only=True)
class ServerState:
    """One server, up or not. `node_version` is of the last state that its agent told."""

    name: ServerName
    grpc_address: str
    triton_up: bool = False
    agent_up: bool = False
    workers_ready: bool = False
    node_version: int = 0
    device_memory_bytes: int = 0
    device_holds_weights: bool = False
    devices: tuple[DeviceView, ...] = ()
    draining: bool = False
    dram_bytes: int = 0
    bandwidth: dict[str, float] = field(default_factory=lambda: dict(ASSUMED_BANDWIDTH))
    fixed_start_s: dict[StartState, dict[str, float]] = field(default_factory=_assumed_fixed_starts)
    in_dram: frozenset[str] = frozenset()
    parked: ParkedStubs = field(default_factory=ParkedStubs)
    worker_pids: Mapping[ReplicaId, int] = field(default_factory=dict)
    stub_pids: Mapping[ReplicaId, int] = field(default_factory=dict)

    @property
    def takes_starts(self) -> bool:
        return self.triton_up and self.agent_up and self.workers_ready

    def learn(self, estimate: StartEstimate, tier: str, actual_s: float) -> None:
        """From a start here. Bytes that came from elsewhere say nothing about the estimate, nor do other backends'."""
        if tier == estimate.tier and tier in self.fixed_start_s[estimate.state]:
            fixed_s = self.fixed_start_s[estimate.state]
            fixed_s[tier] = learn_fixed_cost(fixed_s[tier], estimate, actual_s)


@dataclass(slots=True, kw_only=True)
class ReplicaState:
    """One replica, from the decision to start it until its end. `lost` resolves to the reason of an end nobody asked
    for.
    """

    id: ReplicaId
    model: ModelView
    server: ServerName
    phase: Phase
    lost: asyncio.Future[str]
    streams: set[StreamId] = field(default_factory=set)
    idle_since_s: float = 0.0
    ready_at_s: float = 0.0  # as predicted; of use while it loads
    shown_from_version: int = 0  # the first node state that must show it
    reads_ssd: bool = False
    suspect: bool = False  # a stream broke on it: it takes no more, and goes when the last one has left
    retiring: bool = False  # its model was replaced or is gone: as a suspect one, but nothing is wrong with it
    start: StartRecord | None = None
    exactness: Exactness | None = None  # of its engine, once that is there
    tokens: int = 0
    frees_at_s: float | None = None
    devices: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, str, str]:
        """Its model's, its server's and its own, for log lines."""
        return self.model.name, self.server, self.id

    @property
    def is_leaving(self) -> bool:
        """It takes no more streams, goes when the last one has left, and its stub with it."""
        return self.suspect or self.retiring

    def view(self) -> ReplicaView:
        return ReplicaView(
            id=self.id,
            model=self.model.name,
            checkpoint=self.model.checkpoint,
            checkpoint_bytes=self.model.checkpoint_bytes,
            device_bytes=self.model.device_bytes,
            server=self.server,
            phase=self.phase,
            streams=len(self.streams),
            max_streams=0 if self.is_leaving else self.model.max_streams,
            idle_since_s=self.idle_since_s,
            host_bytes=self.model.host_bytes,
            definition=self.model.definition,
            version=self.model.version,
            tokens=self.tokens,
            frees_at_s=self.frees_at_s,
            devices=self.devices,
            priority=self.model.priority,
            pinned=self.model.pinned,
            model_view=self.model,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedDefinition:
    """The newest definition of a model's version, which does not start, while replicas of an older one serve."""

    model: str
    reason: str


@dataclass(slots=True)
class Cluster:
    """All servers and replicas. `changed()` after every change, so that views carry a version and show it."""

    servers: dict[ServerName, ServerState]
    replicas: dict[ReplicaId, ReplicaState] = field(default_factory=dict)
    failed: dict[str, FailedDefinition] = field(default_factory=dict)  # by definition; `rollouts.py`'s
    can_migrate: bool = False
    version: int = 0
    _index: ViewIndex = field(default_factory=ViewIndex)
    _changed: set[ReplicaId] = field(default_factory=set)  # replicas that the index shows as they were
    _changed_servers: set[ServerName] = field(default_factory=set)
    _all_changed: bool = True
    _loads: dict[ServerName, dict[ReplicaId, int]] = field(default_factory=lambda: defaultdict(dict))

    def changed(self, *, replica: ReplicaId | None = None, server: ServerName | None = None) -> None:
        """That replica, or that server, has changed, come or gone; whoever names neither means that any may have."""
        self.version += 1
        if replica is not None:
            self._changed.add(replica)
        if server is not None:
            self._changed_servers.add(server)
        if replica is None and server is None:
            self._all_changed = True

    def view(self, now_s: float | None = None) -> ClusterView:
        """The moment as the policy sees it, until the next change."""
        if self._index.version != self.version or self._all_changed:
            self._show_changes()
        return ClusterView(
            version=self.version,
            index=self._index,
            failed=frozenset(self.failed),
            can_migrate=self.can_migrate,
            now_s=now_s,
        )

    def _show_changes(self) -> None:
        if self._all_changed:
            self._changed |= self.replicas.keys() | self._index.replicas.keys()
            self._changed_servers |= self.servers.keys() | self._index.servers.keys()
        for replica_id in self._changed:
            self._note_load(replica_id)
        for name in self._changed_servers:
            self._show_server(name)
        for replica_id in self._changed:
            self._show_replica(replica_id)
        self._changed.clear()
        self._changed_servers.clear()
        self._all_changed, self._index.version = False, self.version

    def _note_load(self, replica_id: ReplicaId) -> None:
        """A load that begins or ends changes its server's queue."""
        replica, shown = self.replicas.get(replica_id), self._index.replicas.get(replica_id)
        server = replica.server if replica is not None else shown.server if shown is not None else None
        if server is None:
            return
        reads = replica is not None and replica.phase is Phase.LOADING and replica.reads_ssd
        queued, before = replica.model.checkpoint_bytes if replica is not None and reads else 0, self._loads[server]
        if queued != before.pop(replica_id, 0):
            self._changed_servers.add(server)
        if queued:
            before[replica_id] = queued

    def _show_server(self, name: ServerName) -> None:
        server = self.servers.get(name)
        if server is not None and server.takes_starts:
            self._index.put_server(_server_view(server, sum(self._loads[name].values())))
        else:
            self._index.drop_server(name)

    def _show_replica(self, replica_id: ReplicaId) -> None:
        replica = self.replicas.get(replica_id)
        if replica is not None:
            self._index.put_replica(replica.view())
        else:
            self._index.drop_replica(replica_id)

    def of_model(self, model: str) -> list[ReplicaState]:
        return [replica for replica in self.replicas.values() if replica.model.name == model]

    def outdated(self, model: ModelView) -> list[ReplicaState]:
        """Replicas that this definition replaces, from the least used one on."""
        others = [replica for replica in self.of_model(model.name) if replica.model.definition != model.definition]
        older = [replica for replica in others if model.takes(replica.model.version)]
        return sorted(older, key=lambda replica: (len(replica.streams), replica.id))

    def on_server(self, server: ServerName) -> list[ReplicaState]:
        return [replica for replica in self.replicas.values() if replica.server == server]


def _server_view(server: ServerState, queued_bytes: int) -> ServerView:
    return ServerView(
        name=server.name,
        device_memory_bytes=server.device_memory_bytes,
        device_holds_weights=server.device_holds_weights,
        dram_bytes=server.dram_bytes,
        bandwidth=dict(server.bandwidth),
        fixed_start_s={state: dict(by_tier) for state, by_tier in server.fixed_start_s.items()},
        queued_bytes=queued_bytes,
        in_dram=server.in_dram,
        parked=server.parked.by_model(),
        devices=server.devices,
        draining=server.draining,
    )
