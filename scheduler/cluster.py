"""The control loop's own, mutable picture of servers and replicas, and the frozen view it gives the policy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from serverless_triton.scheduler.admission import (
    Exactness,
    ReplicaId,
    ServerName,
    StartRecord,
    StreamId,
)
from serverless_triton.scheduler.calibration import Calibration, ServerFigures
from serverless_triton.scheduler.parked import ParkedStubs
from serverless_triton.scheduler.view import (
    ClusterView,
    DeviceView,
    ModelView,
    Phase,
    ReplicaView,
    ServerView,
)
from serverless_triton.scheduler.view_index import ViewIndex

STALE_S = 0.01  # what a view says of load queues may be this old


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
    in_dram: frozenset[str] = frozenset()
    on_ssd: frozenset[str] = frozenset()  # remote checkpoints that it has copies of
    parked: ParkedStubs = field(default_factory=ParkedStubs)
    worker_pids: Mapping[ReplicaId, int] = field(default_factory=dict)
    stub_pids: Mapping[ReplicaId, int] = field(default_factory=dict)

    @property
    def takes_starts(self) -> bool:
        return self.triton_up and self.agent_up and self.workers_ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A start's share of its server's load queue of that tier, from when to when as it was predicted."""

    tier: str
    bytes: int
    begins_s: float
    ends_s: float

    def remaining_bytes(self, now_s: float) -> int:
        """All of them until it begins, then ever less."""
        left_s = min(self.ends_s - now_s, self.ends_s - self.begins_s)
        return 0 if left_s <= 0.0 else int(self.bytes * left_s / (self.ends_s - self.begins_s))


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
    read: Read | None = None  # from its server's SSD or from afar, while it loads
    suspect: bool = False  # a stream broke on it: it takes no more, and goes when the last one has left
    retiring: bool = False  # its model was replaced or is gone: as a suspect one, but nothing is wrong with it
    is_needed: bool = False  # one of its model's `min_replicas`
    adopted: bool = False  # an earlier scheduler's start: its agent alone tells how that ends
    start: StartRecord | None = None
    exactness: Exactness | None = None  # of its engine, once that is there
    held_tokens: dict[StreamId, int] = field(default_factory=dict)  # by its streams, as gateways tell
    frees_at_s: float | None = None
    idle_at_s: float | None = None
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
            tokens=sum(self.held_tokens.values()),
            frees_at_s=self.frees_at_s,
            idle_at_s=self.idle_at_s,
            devices=self.devices,
            priority=self.model.priority,
            pinned=not self.is_leaving and (self.model.pinned or self.is_needed),
            model_view=self.model,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedDefinition:
    """The newest definition of a model's version, which does not start, while replicas of an older one serve."""

    model: str
    reason: str


@dataclass(slots=True)
class Cluster:
    """All servers and replicas. `changed()` after every change, so that views carry a version and show it. What loads
    have still to read goes down by the `clock` alone.
    """

    servers: dict[ServerName, ServerState]
    replicas: dict[ReplicaId, ReplicaState] = field(default_factory=dict)
    failed: dict[str, FailedDefinition] = field(default_factory=dict)  # by definition; `rollouts.py`'s
    can_migrate: bool = False
    clock: Callable[[], float] = time.monotonic
    calibration: Calibration = field(default_factory=Calibration)
    version: int = 0
    _index: ViewIndex = field(default_factory=ViewIndex)
    _changed: set[ReplicaId] = field(default_factory=set)  # replicas that the index shows as they were
    _changed_servers: set[ServerName] = field(default_factory=set)
    _all_changed: bool = True
    _reads: dict[ServerName, dict[ReplicaId, Read]] = field(default_factory=dict)
    _read_on_s: float = 0.0

    def changed(self, *, replica: ReplicaId | None = None, server: ServerName | None = None) -> None:
        """That replica, or that server, has changed, come or gone; whoever names neither means that any may have."""
        self.version += 1
        if replica is not None:
            self._changed.add(replica)
        if server is not None:
            self._changed_servers.add(server)
        if replica is None and server is None:
            self._all_changed = True

    def later(self) -> None:
        """Time has passed that somebody waited for: whoever rests is to be asked again."""
        self.version += 1

    def view(self, now_s: float | None = None) -> ClusterView:
        """The moment as the policy sees it, until the next change."""
        clock_s = self.clock()
        if self._reads and clock_s - self._read_on_s >= STALE_S:
            self._read_on(clock_s)
        if self._index.version != self.version or self._all_changed:
            self._show_changes()
        return ClusterView(
            version=self.version,
            index=self._index,
            failed=frozenset(self.failed),
            can_migrate=self.can_migrate,
            now_s=now_s,
        )

    def _read_on(self, clock_s: float) -> None:
        """Time alone has made queues shorter: views lent before are over."""
        self._read_on_s = clock_s
        self.version += 1
        self._changed_servers.update(self._reads)

    def _show_changes(self) -> None:
        if self._all_changed:
            self._changed |= self.replicas.keys() | self._index.replicas.keys()
            self._changed_servers |= self.servers.keys() | self._index.servers.keys()
        for replica_id in self._changed:
            self._note_read(replica_id)
        for name in self._changed_servers:
            self._show_server(name)
        for replica_id in self._changed:
            self._show_replica(replica_id)
        self._changed.clear()
        self._changed_servers.clear()
        self._all_changed, self._index.version = False, self.version

    def _note_read(self, replica_id: ReplicaId) -> None:
        """A load that begins or ends changes its server's queue."""
        replica, shown = self.replicas.get(replica_id), self._index.replicas.get(replica_id)
        server = replica.server if replica is not None else shown.server if shown is not None else None
        if server is None:
            return
        read = replica.read if replica is not None and replica.phase is Phase.LOADING else None
        reads = self._reads.get(server, {})
        if read == reads.get(replica_id):
            return
        self._changed_servers.add(server)
        rest = {other: one for other, one in reads.items() if other != replica_id}
        self._reads[server] = rest if read is None else {**rest, replica_id: read}
        if not self._reads[server]:
            del self._reads[server]

    def _show_server(self, name: ServerName) -> None:
        server = self.servers.get(name)
        if server is not None and server.takes_starts:
            self._index.put_server(_server_view(server, self.calibration.server(name), self.queued_bytes(name)))
        else:
            self._index.drop_server(name)

    def queued_bytes(self, server: ServerName) -> Mapping[str, int]:
        """What its SSD, and its link to the world, have still to read for the views' loads."""
        queued, now_s = {"ssd": 0, "remote": 0}, self.clock()
        for read in self._reads.get(server, {}).values():
            queued[read.tier] += read.remaining_bytes(now_s)
        return queued

    def _show_replica(self, replica_id: ReplicaId) -> None:
        replica = self.replicas.get(replica_id)
        if replica is not None:
            self._index.put_replica(replica.view())
        else:
            self._index.drop_replica(replica_id)

    def of_model(self, model: str) -> list[ReplicaState]:
        return [replica for replica in self.replicas.values() if replica.model.name == model]

    def keep_minimum(self, model: str) -> None:
        """Of its replicas so many make room for nobody as it must have at least, ready ones first."""
        staying = [replica for replica in self.of_model(model) if not replica.is_leaving]
        staying.sort(key=lambda replica: (replica.phase is not Phase.READY, replica.id))
        for number, replica in enumerate(staying):
            is_needed = number < replica.model.min_replicas
            if replica.is_needed != is_needed:
                replica.is_needed = is_needed
                self.changed(replica=replica.id)

    def outdated(self, model: ModelView) -> list[ReplicaState]:
        """Replicas that this definition replaces, from the least used one on."""
        others = [replica for replica in self.of_model(model.name) if replica.model.definition != model.definition]
        older = [replica for replica in others if model.takes(replica.model.version)]
        return sorted(older, key=lambda replica: (len(replica.streams), replica.id))

    def on_server(self, server: ServerName) -> list[ReplicaState]:
        return [replica for replica in self.replicas.values() if replica.server == server]


def _server_view(server: ServerState, learned: ServerFigures, queued_bytes: Mapping[str, int]) -> ServerView:
    return ServerView(
        name=server.name,
        device_memory_bytes=server.device_memory_bytes,
        device_holds_weights=server.device_holds_weights,
        dram_bytes=server.dram_bytes,
        bandwidth=learned.bandwidth,
        bandwidth_error=learned.bandwidth_error,
        fixed_start_s=learned.fixed_start_s,
        fixed_error_s=learned.fixed_error_s,
        park_s=learned.park_s,
        queued_bytes=queued_bytes["ssd"],
        remote_queued_bytes=queued_bytes["remote"],
        in_dram=server.in_dram,
        on_ssd=server.on_ssd,
        parked=server.parked.by_model(),
        devices=server.devices,
        draining=server.draining,
    )
