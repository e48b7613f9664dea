"""Small worlds for the policy and the control loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from prometheus_client import CollectorRegistry

from serverless_triton.scheduler.admission import Assignment, ReplicaId, ServerName, StreamId
from serverless_triton.scheduler.cluster import Cluster, ServerState
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.control_loop import ControlLoop
from serverless_triton.scheduler.effects import FakeEffects
from serverless_triton.scheduler.errors import UnknownModel
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.model_orders import calibrated
from serverless_triton.scheduler.policy import Policy, choose
from serverless_triton.scheduler.view import ClusterView, ModelView, Phase, ReplicaView, ServerView
from serverless_triton.scheduler.view_index import view_of
from serverless_triton.scheduler.waiting_room import ModelOrder

GB = 1_000_000_000


def model(
    name: str = "m", *, size: int = GB, device_bytes: int = GB, max_streams: int = 2, definition: str = ""
) -> ModelView:
    return ModelView(
        name=name,
        checkpoint=f"/models/{name}",
        checkpoint_bytes=size,
        device_bytes=device_bytes,
        max_streams=max_streams,
        definition=definition,
    )


def server(name: str = "s0", **changes: object) -> ServerView:
    figures: dict[str, object] = {
        "device_memory_bytes": 2 * GB,
        "dram_bytes": 4 * GB,
        "bandwidth": {"remote": 0.1 * GB, "ssd": float(GB), "dram": 20.0 * GB},
        "fixed_start_s": {
            "cold": {"dram": 0.25, "ssd": 0.25, "remote": 0.25},
            "parked": {"dram": 0.05, "ssd": 0.05, "remote": 0.05},
        },
        "queued_bytes": 0,
        "in_dram": frozenset(),
    }
    return ServerView(name=ServerName(name), **{**figures, **changes})  # type: ignore[arg-type]


def replica(
    name: str, on: str, of: ModelView, *, streams: int = 0, idle_since_s: float = 0.0, loading: bool = False
) -> ReplicaView:
    return ReplicaView(
        id=ReplicaId(name),
        model=of.name,
        checkpoint=of.checkpoint,
        checkpoint_bytes=of.checkpoint_bytes,
        device_bytes=of.device_bytes,
        server=ServerName(on),
        phase=Phase.LOADING if loading else Phase.READY,
        streams=streams,
        max_streams=of.max_streams,
        idle_since_s=idle_since_s,
        host_bytes=of.host_bytes,
        definition=of.definition,
        version=of.version,
        priority=of.priority,
        pinned=of.pinned,
        model_view=of,
    )


def view(
    servers: list[ServerView],
    replicas: list[ReplicaView] | None = None,
    failed: frozenset[str] = frozenset(),
    **options: Any,
) -> ClusterView:
    return view_of(servers, replicas or [], version=7, failed=failed, **options)


@dataclass
class ManualClock:
    """Time that a test moves."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class World:
    """A control loop over fake effects."""

    loop: ControlLoop
    effects: FakeEffects
    clock: ManualClock
    orders: dict[str, ModelOrder]  # the repository, to be changed; a version under its model's name and its own

    def define(self, changed: ModelView) -> None:
        """What a request that names no version gets, or with `by_name` one that names this version."""
        key = f"{changed.name}/{changed.version}" if changed.by_name else changed.name
        self.orders[key] = ModelOrder(view=changed, parameters={})


def world(
    *servers: str,
    models: tuple[ModelView, ...] = (),
    automatic: bool = True,
    limits: ControlLimits | None = None,
    policy: Policy = choose,
) -> World:
    orders = {m.name: ModelOrder(view=m, parameters={}) for m in models}

    clock = ManualClock()

    def order_of(name: str, version: str = "") -> ModelOrder:
        key = f"{name}/{version}" if version else name
        if key not in orders:
            raise UnknownModel(f"Request for unknown model: '{name}' is not found")
        return replace(orders[key], view=calibrated(orders[key].view, cluster.calibration.model(name)))

    states = {
        ServerName(name): ServerState(
            name=ServerName(name),
            grpc_address=f"{name}:8001",
            triton_up=True,
            agent_up=True,
            workers_ready=True,
            device_memory_bytes=2 * GB,
            dram_bytes=4 * GB,
        )
        for name in servers
    }
    cluster = Cluster(states, clock=clock)
    effects = FakeEffects(automatic=automatic)
    loop = ControlLoop(
        cluster=cluster,
        effects=effects,
        order_of=order_of,
        clock=clock,
        metrics=ControlMetrics(CollectorRegistry()),
        limits=limits or ControlLimits(),
        policy=policy,
    )
    return World(loop, effects, clock, orders)


async def settle() -> None:
    """Let every task that can run, run."""
    for _ in range(20):
        await asyncio.sleep(0)


def asked(w: World, stream: str, name: str, **options: Any) -> asyncio.Task[Assignment]:
    return asyncio.ensure_future(w.loop.admit(StreamId(stream), name, timeout_s=60.0, **options))
