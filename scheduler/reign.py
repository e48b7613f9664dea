"""One leadership's parts: control loop, effects, a watch per server, rollouts, and what is kept of it.

A scheduler that has the state for itself has one reign, from its start to its end. Nothing of a reign outlives it but
what `persistence.py` keeps: the next one learns of replicas from agents and Tritons.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from serverless_triton.backend.node_secret import NodeSecret
from serverless_triton.scheduler.admission import ServerName
from serverless_triton.scheduler.calibration import Calibration
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.cluster import Cluster, ServerState
from serverless_triton.scheduler.config import ControlConfig, SchedulerConfig
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.control_loop import ControlLoop
from serverless_triton.scheduler.demand import Demand
from serverless_triton.scheduler.learned import LearnedModels
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.model_orders import model_orders
from serverless_triton.scheduler.node_links import NodeLinks
from serverless_triton.scheduler.persistence import Kept, Persistence
from serverless_triton.scheduler.registration import Members
from serverless_triton.scheduler.registry import Comings, Registry
from serverless_triton.scheduler.repository_watch import RepositoryWatch
from serverless_triton.scheduler.rivals import POLICIES
from serverless_triton.scheduler.rollouts import RolloutMetrics, Rollouts
from serverless_triton.scheduler.server_watch import ServerWatch
from serverless_triton.scheduler.state.protocol import Leadership, StateStore
from serverless_triton.scheduler.triton_effects import ServerAddresses, TritonEffects


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What there is of in a process, whoever leads."""

    config: SchedulerConfig
    catalogue: Catalogue
    links: NodeLinks
    control_metrics: ControlMetrics
    rollout_metrics: RolloutMetrics
    store: StateStore


@dataclass(slots=True)
class Reign:
    """Made by `of` in a running event loop; `run` until cancelled."""

    loop: ControlLoop
    effects: TritonEffects
    rollouts: Rollouts
    persistence: Persistence
    watches: list[ServerWatch]
    repository: RepositoryWatch
    registry: Registry | None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    def of(cls, around: Surroundings, leadership: Leadership, may_decide: Callable[[], bool] = lambda: True) -> Reign:
        """Besides its leadership, `may_decide` says whether enough is known of who uses what."""
        config, catalogue, links = around.config, around.catalogue, around.links
        learned, cluster = LearnedModels(), _cluster(config)
        effects = _effects(around, lambda: loop.epoch, lambda: leadership.may_act(time.monotonic()))
        loop = ControlLoop(
            cluster=cluster,
            effects=effects,
            order_of=model_orders(catalogue, learned, cluster.calibration),
            learned=learned,
            lasting=lambda: [entry.name for entry in catalogue.entries() if entry.lifecycle.is_lasting],
            clock=time.monotonic,
            metrics=around.control_metrics,
            policy=POLICIES[config.control.policy],
            limits=_limits(config.control),
            epoch=leadership.epoch,
            may_act=lambda: leadership.may_act(time.monotonic()) and may_decide(),
        )
        rollouts = Rollouts(
            loop=loop,
            metrics=around.rollout_metrics,
            timeout_s=config.gateway.admin_timeout_s,
            clock=time.monotonic,
        )
        watches = [
            ServerWatch(loop, loop.cluster.servers[ServerName(s.name)], s.agent, leadership, links)
            for s in config.servers
        ]
        return cls(
            loop=loop,
            effects=effects,
            rollouts=rollouts,
            persistence=Persistence(around.store, _kept(learned, cluster.calibration, loop.demand), loop.may_act),
            watches=watches,
            repository=RepositoryWatch(catalogue, after_each=rollouts.check),
            registry=_registry(config, loop, effects, partial(_watch, loop, leadership, links)),
        )

    async def begin(self, catalogue: Catalogue) -> None:
        """Raises StateUnavailable, and then nothing has begun."""
        await self.persistence.load()
        catalogue.on_change = self.rollouts.on_change
        works = [*(watch.run() for watch in self.watches), self.repository.run()]
        works += [self.registry.run()] if self.registry is not None else []
        self._tasks = [_task(work) for work in (*works, self.persistence.run())]

    async def broken(self) -> None:
        """Returns when one of its parts has ended, which none should."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def end(self) -> None:
        """Replicas go on running, and the next reign adopts them."""
        await self.rollouts.close()
        await self.loop.close()
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.persistence.save()
        await self.effects.close()


def _watch(loop: ControlLoop, leadership: Leadership, links: NodeLinks, server: ServerState, agent: str) -> ServerWatch:
    return ServerWatch(loop, server, agent, leadership, links)


def _registry(
    config: SchedulerConfig,
    loop: ControlLoop,
    effects: TritonEffects,
    watch_of: Callable[[ServerState, str], ServerWatch],
) -> Registry | None:
    if config.registration is None:
        return None
    return Registry(
        members=Members(config.registration, config.servers),
        comings=Comings(loop=loop, effects=effects, watch_of=watch_of),
        clock=time.monotonic,
        secret=None if config.secret_file is None else NodeSecret.read(config.secret_file),
        tls=config.node_tls,
    )


def _kept(learned: LearnedModels, calibration: Calibration, demand: Demand) -> list[Kept]:
    return [
        Kept(name="learned_models", to_json=learned.to_json, from_json=learned.from_json),
        Kept(name="calibration", to_json=calibration.to_json, from_json=calibration.take_over),
        Kept(name="demand", to_json=demand.to_json, from_json=demand.from_json),
    ]


def _cluster(config: SchedulerConfig) -> Cluster:
    servers = {ServerName(s.name): ServerState(name=ServerName(s.name), grpc_address=s.triton) for s in config.servers}
    return Cluster(servers)


def _effects(around: Surroundings, epoch: Callable[[], int], may_act: Callable[[], bool]) -> TritonEffects:
    config, catalogue = around.config, around.catalogue
    return TritonEffects(
        {ServerName(s.name): ServerAddresses(triton=s.triton, agent=s.agent) for s in config.servers},
        lambda model, definition: catalogue.entry(model).config_for(definition),
        time.monotonic,
        links=around.links,
        epoch=epoch,
        may_act=may_act,
        load_timeout_s=config.control.load_timeout_s,
        release_timeout_s=config.control.release_timeout_s,
    )


def _limits(control: ControlConfig) -> ControlLimits:
    return ControlLimits(
        max_waiting_per_model=control.max_waiting_per_model,
        max_failed_starts=control.max_failed_starts,
        keep_alive_s=control.keep_alive_s,
        adaptive_keep_alive=control.adaptive_keep_alive,
        prefetch_bytes_per_server=control.prefetch_bytes_per_server,
        prefetch_horizon_s=control.prefetch_horizon_s,
        max_parked_per_server=control.max_parked_per_server,
        max_parked_bytes_per_server=control.max_parked_bytes_per_server,
    )


def _task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)
