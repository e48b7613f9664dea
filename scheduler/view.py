"""The world as the policy sees it: frozen values, sorted, made by the control loop from what servers and gateways
told it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serverless_triton.scheduler.admission import ReplicaId, ServerName, StartState
from serverless_triton.scheduler.definitions import definition_of

if TYPE_CHECKING:
    from serverless_triton.scheduler.view_index import ViewIndex

FixedStarts = Mapping[StartState, Mapping[str, float]]  # seconds by what was there before and by tier
Bandwidth = Mapping[str, float]  # bytes/s by tier: "remote", "ssd", "dram"


class Phase(enum.Enum):
    """A replica's phase. LOADING: wanted and on its way. READY: takes streams. Anything else is no replica: of one that
    was parked only a stub is left, `ServerView.parked`.
    """

    LOADING = "loading"
    READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """What a start of this model needs. `device_bytes` is a replica's share of device memory beside the weights.

    A `foreign` one is another backend's: it has no checkpoint, its processes take `host_bytes`, and all of its start is
    Triton's load, which takes about `load_s`. An ensemble loads with its `members`, whose memory is its own.
    `definition` is of its configuration and files, "" where nobody knows; replicas of two definitions are two models
    that share a name. `others` are the versions that are served beside this one; a `foreign` one has none, since its
    servers have them all.
    """

    name: str
    checkpoint: str
    checkpoint_bytes: int
    device_bytes: int
    max_streams: int
    host_bytes: int = 0
    foreign: bool = False
    measured: bool = False  # its host_bytes are what its loads took, not declared
    load_s: float = 0.0
    definition: str = ""
    version: str = ""
    others: frozenset[str] = frozenset()
    by_name: bool = False  # the version was asked for; else it is the latest that is served
    members: tuple[str, ...] = ()
    # What was learned of it makes it no other model.
    fixed_offset_s: Mapping[StartState, float] = field(default_factory=dict, compare=False)
    offset_error_s: Mapping[StartState, float] = field(default_factory=dict, compare=False)
    migration_s_per_token: float = field(default=0.0, compare=False)
    migration_fixed_s: float = field(default=0.0, compare=False)
    devices: int = 1
    min_replicas: int = 0
    max_replicas: int | None = None
    priority: int = 0
    pinned: bool = False

    def takes(self, version: str) -> bool:
        """Whether a replica of that version may answer. Whoever names none is content with one that was served before
        the latest, until that runs.
        """
        return version == self.version or (not self.by_name and version not in self.others)

    @property
    def is_remote(self) -> bool:
        """Its checkpoint is behind a URL, so that a server's SSD has at most a copy."""
        return "://" in self.checkpoint and not self.checkpoint.startswith("file://")

    @property
    def models(self) -> tuple[str, ...]:
        """What Triton has in memory for it, an ensemble before its members."""
        return self.name, *self.members


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """One device of a server, by its place in the node's configuration."""

    id: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerView:
    """One server: its budgets, its tiers' bandwidths, and what its store holds in DRAM.

    `device_memory_bytes` is the sum of its `devices`'; where none are named it is that of one. With
    `device_holds_weights`, on GPUs, a replica's weights count there, too; without, the device is the host's processor,
    and what a replica takes of the host counts there. A `draining` one takes no starts. Errors are standard errors of a
    single start: of a bandwidth as a share of it, of the rest in seconds.
    """

    name: ServerName
    device_memory_bytes: int
    dram_bytes: int
    bandwidth: Bandwidth
    fixed_start_s: FixedStarts  # what a start costs beside moving bytes
    queued_bytes: int  # on the node's sequential load queue, from its SSD
    in_dram: frozenset[str]  # checkpoints
    parked: Mapping[str, ReplicaId] = field(default_factory=dict)  # by model: its stub there that waits for an engine
    device_holds_weights: bool = False
    devices: tuple[DeviceView, ...] = ()
    draining: bool = False
    remote_queued_bytes: int = 0  # as of the SSD, from afar
    on_ssd: frozenset[str] = frozenset()  # remote checkpoints that it has copies of
    park_s: float = 0.0  # to make room by parking
    bandwidth_error: Mapping[str, float] = field(default_factory=dict)
    fixed_error_s: FixedStarts = field(default_factory=dict)

    def device_bytes_of(self, one: ModelView | ReplicaView) -> int:
        """What a replica takes of this server's device memory."""
        return one.device_bytes + (one.checkpoint_bytes if self.device_holds_weights else one.host_bytes)

    def host_bytes_of(self, one: ModelView | ReplicaView) -> int:
        """What it takes of DRAM beside any checkpoint."""
        return one.host_bytes if self.device_holds_weights else 0

    def parked_stub(self, model: ModelView) -> ReplicaId | None:
        """One that an engine of this definition can start on."""
        stub = self.parked.get(model.name)
        return stub if stub is not None and definition_of(stub) in ("", model.definition) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """One replica and the streams that hold a reference to it, those waiting for its start included.

    `tokens` are all that its streams hold, read and written, as far as gateways have told. A full one is expected to
    have a place at `frees_at_s`, a busy one to be idle at `idle_at_s`, on the control loop's clock. `devices` are those
    that it lies on; none: nobody told. Without a `model_view` nobody knows what it would take to start it elsewhere.
    """

    id: ReplicaId
    model: str
    checkpoint: str
    checkpoint_bytes: int
    device_bytes: int
    server: ServerName
    phase: Phase
    streams: int
    max_streams: int
    idle_since_s: float
    host_bytes: int = 0
    definition: str = ""
    version: str = ""
    tokens: int = 0
    frees_at_s: float | None = None
    idle_at_s: float | None = None
    devices: tuple[int, ...] = ()
    priority: int = 0
    pinned: bool = False
    model_view: ModelView | None = None

    @property
    def is_idle(self) -> bool:
        return self.phase is Phase.READY and self.streams == 0

    @property
    def is_movable(self) -> bool:
        """It has streams that another server could go on with; those of other backends' models are bound to theirs."""
        is_serving = self.phase is Phase.READY and self.streams > 0 and self.max_streams > 0
        return is_serving and not self.pinned and self.model_view is not None and not self.model_view.foreign


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """One moment, until the next change of its `index`. Replicas may also stand on servers that take no starts.

    `failed` are definitions whose start failed beside replicas of an older one. Replicas are moved only where
    `can_migrate`. Without `now_s`, on the control loop's clock, nobody waits for a place that is expected to be free.
    """

    version: int
    index: ViewIndex
    failed: frozenset[str] = frozenset()
    can_migrate: bool = False
    now_s: float | None = None

    @property
    def is_current(self) -> bool:
        """Nothing has changed since."""
        return self.version == self.index.version

    @property
    def servers(self) -> tuple[ServerView, ...]:
        """Those that take starts, by name."""
        return tuple(self.index.servers[name] for name in sorted(self.index.servers))

    @property
    def replicas(self) -> tuple[ReplicaView, ...]:
        """By id."""
        return tuple(self.index.replicas[replica] for replica in sorted(self.index.replicas))

    def server(self, name: ServerName) -> ServerView | None:
        """None where it takes no starts."""
        return self.index.servers.get(name)

    def on_server(self, name: ServerName) -> Collection[ReplicaView]:
        return self.index.by_server.get(name, _NONE).values()

    def of_model(self, name: str) -> Collection[ReplicaView]:
        return self.index.by_model.get(name, _NONE).values()


_NONE: Mapping[ReplicaId, ReplicaView] = {}
