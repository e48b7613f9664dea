"""What becomes of running replicas when their model changes or goes.

1. A replica of the newest definition starts beside the older ones, which serve until it is ready. Then they take no
   more streams, and each goes when its last one has ended.
2. Where there is no room for both, an older one that nobody uses goes first; where all are in use, the one with the
   fewest streams whose end would make the room takes no more.
3. A definition that does not start leaves the older replicas serving, until it changes or somebody loads the model.
4. Stubs that were parked with another configuration are unloaded.
5. A model that is gone: those who wait hear it, its replicas go when their streams have ended.

All of it is looked at again after every look at the repository, so nothing depends on having heard of a change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter

from serverless_triton.scheduler.admission import ReplicaId
from serverless_triton.scheduler.catalogue import Change
from serverless_triton.scheduler.cluster import FailedDefinition, ReplicaState
from serverless_triton.scheduler.control_limits import TRANSIENT
from serverless_triton.scheduler.control_loop import ControlLoop
from serverless_triton.scheduler.errors import SchedulerError, UnknownModel
from serverless_triton.scheduler.policy import Start, StartRequest, Wait, choose
from serverless_triton.scheduler.view import ClusterView, ModelView, Phase

logger = logging.getLogger(__name__)

Version = tuple[str, str]  # of a model
RETRY_S = 10.0  # after a start that failed for a reason that passes


class RolloutMetrics:
    """Changes of the repository, and what came of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.changes = Counter(
            "serverless_triton_repository_changes_total",
            "Models of the repository that were added, changed, removed or broken",
            ["model", "kind"],
            registry=registry,
        )
        self.rollouts = Counter(
            "serverless_triton_rollouts_total",
            "Running models whose definition changed: replaced, or failed to start",
            ["model", "outcome"],
            registry=registry,
        )


@dataclass(slots=True, kw_only=True)
class Rollouts:
    """On the control loop's asyncio loop. `timeout_s` bounds each wait for a replica of the newest definition."""

    loop: ControlLoop
    metrics: RolloutMetrics
    timeout_s: float
    clock: Callable[[], float]
    _under_way: dict[Version, asyncio.Task[None]] = field(default_factory=dict)
    _not_before_s: dict[str, float] = field(default_factory=dict)  # by definition

    def on_change(self, change: Change) -> None:
        """The repository's news."""
        words = (change.model, change.kind, change.definition, change.reason)
        logger.info("repository_change model=%s kind=%s definition=%s reason=%r", *words)
        self.metrics.changes.labels(change.model, change.kind).inc()
        self._look_at(change.model)

    def check(self) -> None:
        """Every model that runs, is parked or is waited for."""
        self.loop.upkeep.look_at_repository()
        cluster = self.loop.cluster
        parked = {model for server in cluster.servers.values() for _, model in server.parked.items()}
        running = {replica.model.name for replica in cluster.replicas.values()}
        for model in sorted(parked | running | self.loop.waiting_by_model().keys()):
            self._look_at(model)

    async def close(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _look_at(self, model: str) -> None:
        try:
            newest = self.loop.order_of(model).view
            versions = [newest, *(self.loop.order_of(model, version).view for version in sorted(newest.others))]
        except UnknownModel as error:
            self.loop.abandon(model, str(error))
            self._forget_all_but(model, frozenset())
            return
        except SchedulerError:  # its backend is not served any more: what runs of it runs on
            return
        definitions = frozenset(view.definition for view in versions)
        self.loop.departures.unload_all_parked(model, but=definitions)
        self._forget_all_but(model, definitions)
        for view in versions:
            self._follow(view)

    def _follow(self, newest: ModelView) -> None:
        """One version, by its newest definition."""
        outdated = self.loop.cluster.outdated(newest)
        if self._is_ready(newest):
            for replica in [one for one in outdated if not one.retiring]:
                self.loop.ends.retire(replica)
            self._forget(newest.definition)
        elif (newest.name, newest.version) in self._under_way:
            self._make_room(newest, outdated)
        elif any(not replica.retiring for replica in outdated) and self._is_due(newest.definition):
            task = asyncio.get_running_loop().create_task(self._start(newest))
            self._under_way[newest.name, newest.version] = task

    def _is_ready(self, newest: ModelView) -> bool:
        replicas = self.loop.cluster.of_model(newest.name)
        return any(r.model.definition == newest.definition and r.phase is Phase.READY for r in replicas)

    def _make_room(self, newest: ModelView, outdated: list[ReplicaState]) -> None:
        request = StartRequest(model=newest, avoid=frozenset(replica.id for replica in outdated))
        name = in_the_way(self.loop.cluster.view(), request)
        if name is not None and not self.loop.cluster.replicas[name].retiring:
            self.loop.ends.retire(self.loop.cluster.replicas[name])

    def _is_due(self, definition: str) -> bool:
        is_late_enough = self.clock() >= self._not_before_s.get(definition, 0.0)
        return is_late_enough and definition not in self.loop.cluster.failed

    async def _start(self, newest: ModelView) -> None:
        words, version = (newest.name, newest.version, newest.definition), newest.version if newest.by_name else ""
        logger.info("rollout_begins model=%s version=%s definition=%s", *words)
        try:
            await self.loop.warm(newest.name, timeout_s=self.timeout_s, version=version)
        except SchedulerError as error:
            self._failed(newest, error)
        else:
            logger.info("rollout_ready model=%s version=%s definition=%s", *words)
            self.metrics.rollouts.labels(newest.name, "replaced").inc()
        finally:
            self._under_way.pop((newest.name, newest.version), None)
        self._look_at(newest.name)

    def _failed(self, newest: ModelView, error: SchedulerError) -> None:
        words = (newest.name, newest.version, newest.definition, error.code, str(error))
        logger.warning("rollout_failed model=%s version=%s definition=%s code=%s error=%s", *words)
        self.metrics.rollouts.labels(newest.name, "failed").inc()
        self._not_before_s[newest.definition] = self.clock() + RETRY_S
        if error.code not in TRANSIENT:
            self.loop.cluster.failed[newest.definition] = FailedDefinition(model=newest.name, reason=str(error))
            self.loop.cluster.changed()

    def _forget_all_but(self, model: str, definitions: frozenset[str]) -> None:
        """What failed of a model and is not to be found in the repository any more."""
        for definition, failed in list(self.loop.cluster.failed.items()):
            if failed.model == model and definition not in definitions:
                self._forget(definition)

    def _forget(self, definition: str) -> None:
        self._not_before_s.pop(definition, None)
        if self.loop.cluster.failed.pop(definition, None) is not None:
            self.loop.cluster.changed()


def in_the_way(view: ClusterView, request: StartRequest) -> ReplicaId | None:
    """Of the replicas that this start replaces: whose end would let it begin, if it cannot now. One that takes no
    streams any more comes first, then the one with the fewest.
    """
    if not isinstance(choose(view, request).action, Wait):
        return None
    older = [replica for replica in view.of_model(request.model.name) if replica.id in request.avoid]
    for replica in sorted(older, key=lambda one: (one.max_streams > 0, one.streams, one.id)):
        with view.index.without(replica):
            if isinstance(choose(view, request).action, Start):
                return replica.id
    return None
