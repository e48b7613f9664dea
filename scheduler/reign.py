"""One leadership's parts: control loop, effects, a watch per server, rollouts, and what is kept of it.

A scheduler that has the state for itself has one reign, from its start to its end. Nothing of a reign outlives it but
what `persistence.py` keeps: the next one learns of replicas from agents and Tritons.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from serverless_triton.scheduler.admission import ServerName
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.cluster import Cluster, ServerState
from serverless_triton.scheduler.config import ControlConfig, SchedulerConfig
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.control_loop import ControlLoop
from serverless_triton.scheduler.learned import LearnedModels
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.model_orders import model_orders
from serverless_triton.scheduler.node_links import NodeLinks
from serverless_triton.scheduler.persistence import Kept, Persistence
from serverless_triton.scheduler.repository_watch import RepositoryWatch
from serverless_triton.scheduler.rollouts import RolloutMetrics, Rollouts
from serverless_triton.scheduler.server_watch import ServerWatch
from serverless_triton.scheduler.state.protocol import Leadership, StateStore
from serverless_triton.scheduler.triton_effects import ServerAddresses, TritonEffects

PARKING_INTERVAL_S = 0.25


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
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    def of(cls, around: Surroundings, leadership: Leadership) -> Reign:
        config, catalogue, links = around.config, around.catalogue, around.links
        learned = LearnedModels()
        effects = _effects(around)
        loop = ControlLoop(
            cluster=_cluster(config),
            effects=effects,
            order_of=model_orders(catalogue, learned),
            learned=learned,
            clock=time.monotonic,
            metrics=around.control_metrics,
            limits=_limits(config.control),
            epoch=leadership.epoch,
            may_act=lambda: leadership.may_act(time.monotonic()),
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
            persistence=Persistence(around.store, _kept(learned), loop.may_act),
            watches=watches,
            repository=RepositoryWatch(catalogue, after_each=rollouts.check),
        )

    async def begin(self, catalogue: Catalogue) -> None:
        """Raises StateUnavailable, and then nothing has begun."""
        await self.persistence.load()
        catalogue.on_change = self.rollouts.on_change
        works = [*(watch.run() for watch in self.watches), self.repository.run(), self._park_overdue()]
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

    async def _park_overdue(self) -> None:
        while True:
            await asyncio.sleep(PARKING_INTERVAL_S)
            if self.loop.may_act():
                self.loop.park_overdue()


def _kept(learned: LearnedModels) -> list[Kept]:
    return [Kept(name="learned_models", to_json=learned.to_json, from_json=learned.from_json)]


def _cluster(config: SchedulerConfig) -> Cluster:
    servers = {ServerName(s.name): ServerState(name=ServerName(s.name), grpc_address=s.triton) for s in config.servers}
    return Cluster(servers)


def _effects(around: Surroundings) -> TritonEffects:
    config, catalogue = around.config, around.catalogue
    return TritonEffects(
        {ServerName(s.name): ServerAddresses(triton=s.triton, agent=s.agent) for s in config.servers},
        lambda model, definition: catalogue.entry(model).config_for(definition),
        time.monotonic,
        links=around.links,
        load_timeout_s=config.control.load_timeout_s,
        release_timeout_s=config.control.release_timeout_s,
    )


def _limits(control: ControlConfig) -> ControlLimits:
    return ControlLimits(
        max_waiting_per_model=control.max_waiting_per_model,
        max_failed_starts=control.max_failed_starts,
        keep_alive_s=control.keep_alive_s,
        max_parked_per_server=control.max_parked_per_server,
        max_parked_bytes_per_server=control.max_parked_bytes_per_server,
    )


def _task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)
