"""What is behind a view: servers and replicas by all that the policy looks them up by, and the columns.

Whoever knows of a change puts it here, so that a decision costs what changed since the last one and not the size of the
cluster. A view lends it out until the next change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.columns import NO_ROWS, AnyRows, Columns
from serverless_triton.scheduler.move_floors import MoveFloors
from serverless_triton.scheduler.placement import Standing, is_evictable
from serverless_triton.scheduler.view import ClusterView, ModelView, ReplicaView, ServerView

Replicas = dict[ReplicaId, ReplicaView]


@dataclass(slots=True)
class ViewIndex:
    """`servers` are those that take starts; `standings` what is free there, and who of those that run may go."""

    version: int = 0
    servers: dict[ServerName, ServerView] = field(default_factory=dict)
    replicas: Replicas = field(default_factory=dict)
    by_model: dict[str, Replicas] = field(default_factory=lambda: defaultdict(dict))
    by_server: dict[ServerName, Replicas] = field(default_factory=lambda: defaultdict(dict))
    by_checkpoint: dict[str, Replicas] = field(default_factory=lambda: defaultdict(dict))
    standings: dict[ServerName, Standing] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    floors: MoveFloors = field(default_factory=MoveFloors)

    def put_server(self, server: ServerView) -> None:
        """It is new, or something of it is."""
        before = self.servers.get(server.name)
        self.servers[server.name] = server
        self.columns.put(server, before)
        if self.floors.widen(server):
            self._set_floors(self.servers)
        self._weigh(server.name)
        for checkpoint in server.in_dram - (before.in_dram if before else frozenset()):
            self._set_floors(one.server for one in self.by_checkpoint.get(checkpoint, {}).values())

    def drop_server(self, name: ServerName) -> None:
        """It takes no starts."""
        server = self.servers.pop(name, None)
        if server is not None:
            self.columns.drop(server)
            del self.standings[name]

    def put_replica(self, replica: ReplicaView) -> None:
        """It is new, or something of it is."""
        before = self.replicas.get(replica.id)
        for group in self._groups(replica):
            group[replica.id] = replica
        if before is None or _weight(before) != _weight(replica):
            self._weigh(replica.server)
            self._set_floors(one.server for one in self._twins(replica))

    def drop_replica(self, replica_id: ReplicaId) -> None:
        """It has ended."""
        replica = self.replicas.get(replica_id)
        if replica is None:
            return
        for group in self._groups(replica):
            del group[replica_id]
        for groups, key in ((self.by_model, replica.model), (self.by_checkpoint, replica.checkpoint)):
            if not groups[key]:
                del groups[key]
        self._weigh(replica.server)

    def _groups(self, replica: ReplicaView) -> tuple[Replicas, ...]:
        return (
            self.replicas,
            self.by_model[replica.model],
            self.by_server[replica.server],
            self.by_checkpoint[replica.checkpoint],
        )

    def _twins(self, replica: ReplicaView) -> list[ReplicaView]:
        """The one other replica of a model, which had none to be moved into before; more have had each other."""
        others = [one for one in self.by_model[replica.model].values() if one.id != replica.id]
        return others if len(others) == 1 else []

    def _weigh(self, name: ServerName) -> None:
        server = self.servers.get(name)
        if server is not None:
            self.standings[name] = self.columns.weigh(server, self.by_server[name].values())
            self._set_floors((name,))

    def _set_floors(self, names: Iterable[ServerName]) -> None:
        for name in {name for name in names if name in self.servers}:
            movable = (one for one in self.by_server[name].values() if one.is_movable)
            floor_s = min((self.move_floor_s(one) for one in movable), default=float("inf"))
            self.columns.move_floor_s[self.columns.row_of[name]] = floor_s

    def move_floor_s(self, replica: ReplicaView) -> float:
        """No move of it takes less, whatever its streams hold."""
        has_twin = len(self.by_model[replica.model]) > 1
        rows: AnyRows = self.columns.in_dram.get(replica.checkpoint, NO_ROWS)
        elsewhere = len(rows) > (self.columns.row_of.get(replica.server) in rows)
        return self.floors.floor_s(replica, is_there=has_twin, in_dram=elsewhere)

    @contextmanager
    def without(self, replica: ReplicaView) -> Iterator[None]:
        """As if it had ended, within the block."""
        self.drop_replica(replica.id)
        try:
            yield
        finally:
            self.put_replica(replica)


def _weight(replica: ReplicaView) -> tuple[object, ...]:
    """What of it counts in the columns."""
    evictable = is_evictable(replica)
    return (
        evictable,
        replica.idle_since_s if evictable else None,
        replica.priority,
        replica.is_movable,
        replica.device_bytes,
        replica.host_bytes,
        replica.checkpoint_bytes,
        replica.devices,
        replica.model_view,
        replica.model_view is not None and _taught(replica.model_view),
    )


def _taught(model: ModelView) -> tuple[object, ...]:
    """What its floor depends on, and its equality leaves out."""
    return model.migration_fixed_s, tuple(sorted(model.fixed_offset_s.items()))


def view_of(
    servers: Iterable[ServerView],
    replicas: Iterable[ReplicaView] = (),
    *,
    version: int = 0,
    failed: frozenset[str] = frozenset(),
    can_migrate: bool = False,
    now_s: float | None = None,
) -> ClusterView:
    """A view of its own, made from scratch."""
    index = ViewIndex(version=version)
    for server in servers:
        index.put_server(server)
    for replica in replicas:
        index.put_replica(replica)
    return ClusterView(version=version, index=index, failed=failed, can_migrate=can_migrate, now_s=now_s)
