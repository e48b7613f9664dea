"""What the policy is asked and what it answers (decision 12): values, the same for every policy.

A move puts the streams of a running replica on another server, where a replica of their model starts or takes them in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.estimator import StartEstimate
from serverless_triton.scheduler.view import ClusterView, ModelView

KEPT_CANDIDATES = 8
PolicyName = Literal["startup_time", "random", "locality", "shepherd", "least_loaded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """One stream's wish. `avoid` names replicas that it broke on, `avoid_servers` where its start failed."""

    model: ModelView
    avoid: frozenset[ReplicaId] = frozenset()
    avoid_servers: frozenset[ServerName] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A running replica's streams go to another server within `migrate_s`: into the replica that is there already, or
    else into one that starts there, once these idle ones have made room; on these devices, on a parked stub if one is
    named.
    """

    replica: ReplicaId
    to: ServerName
    migrate_s: float
    into: ReplicaId | None = None
    evict: tuple[ReplicaId, ...] = ()
    parked: ReplicaId | None = None
    devices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A server that could start the model on these devices once these replicas are evicted, moved, or preempted; on a
    parked stub, if it has one. Moves go one after another.
    """

    server: ServerName
    evict: tuple[ReplicaId, ...]
    estimate: StartEstimate
    parked: ReplicaId | None = None
    moves: tuple[Move, ...] = ()
    preempt: tuple[ReplicaId, ...] = ()
    devices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Take a place on this replica, ready or on its way."""

    replica: ReplicaId


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start a replica there."""

    candidate: Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Until something changes; to be asked again by `until_s`, on the control loop's clock, where that is known."""

    reason: str
    until_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """No change of load would help."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do, and why: the best candidates, and how many servers were rejected for which reason."""

    view_version: int
    action: Use | Start | Wait | Refuse
    candidates: tuple[Candidate, ...] = ()
    rejected: Mapping[str, int] = field(default_factory=dict)


Policy = Callable[[ClusterView, StartRequest], Decision]
