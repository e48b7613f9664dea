"""Replicas and parked stubs on their way out: the effects that end them, and the memory that keeps late news from
bringing them back.

Parking leaves the stub in Triton, a release has Triton unload it too. Other backends' models end by Triton's unload.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.cluster import Cluster, ServerState
from serverless_triton.scheduler.definitions import definition_of
from serverless_triton.scheduler.effects import EffectFailed, Effects

logger = logging.getLogger(__name__)

REMEMBERED_ENDS = 4096

Work = Coroutine[Any, Any, None]


@dataclass(slots=True, kw_only=True)
class Departures:
    """The control loop's, on its asyncio loop. `epoch` is the permits' at that moment; `spawn` owns the tasks."""

    cluster: Cluster
    effects: Effects
    epoch: Callable[[], int]
    spawn: Callable[[Work], asyncio.Task[None]]
    _under_way: dict[ServerName, dict[ReplicaId, asyncio.Task[None]]] = field(default_factory=lambda: defaultdict(dict))
    _ended: OrderedDict[ReplicaId, bool] = field(default_factory=OrderedDict)  # whether its stub was to stay

    def note(self, replica: ReplicaId, *, parks: bool) -> None:
        """The replica has ended for us, whatever its agent still shows."""
        self._ended[replica] = parks
        while len(self._ended) > REMEMBERED_ENDS:
            self._ended.popitem(last=False)

    def knows(self, replica: ReplicaId) -> bool:
        return replica in self._ended

    async def over(self, server: ServerName) -> None:
        """Whatever is leaving there holds memory, and unloads by model name."""
        if self._under_way[server]:
            await asyncio.wait(set(self._under_way[server].values()))

    async def ended(self, server: ServerName, replica: ReplicaId) -> None:
        """What ends this one there is over."""
        task = self._under_way[server].get(replica)
        if task is not None:
            await asyncio.wait({task})

    def park(self, server: ServerName, replica: ReplicaId) -> asyncio.Task[None]:
        """End the engine; its memory is free when the task ends, and its stub waits for another."""
        return self._begin(server, replica, self.effects.park_engine(server, replica, self.epoch()))

    def release(self, server: ServerName, replica: ReplicaId, model: str) -> asyncio.Task[None]:
        """End the engine, then begin Triton's unload, which takes a second more and holds no engine memory."""
        return self._begin(server, replica, self._release_and_unload(server, replica, model))

    def end_foreign(self, server: ServerName, replica: ReplicaId, models: Iterable[str]) -> asyncio.Task[None]:
        """One after the other, but for those that another replica there has too. Their memory is free when the task
        ends.
        """
        needed = {model for other in self.cluster.on_server(server) for model in other.model.models}
        return self._begin(server, replica, self._end_all(server, [model for model in models if model not in needed]))

    async def _end_all(self, server: ServerName, models: Iterable[str]) -> None:
        for model in models:
            await self.effects.end_foreign(server, model)

    def again(self, server: ServerName, replica: ReplicaId, model: str) -> None:
        """Its agent shows a replica that has ended here: what should have ended it did not reach the agent."""
        if replica not in self._ended or replica in self._under_way[server]:
            return
        logger.warning("release_again model=%s server=%s replica=%s", model, server, replica)
        if self._ended[replica]:
            self.park(server, replica)
        else:
            self.release(server, replica, model)

    def unload_parked(self, server: ServerState, stub: ReplicaId, model: str) -> None:
        logger.info("unload_parked model=%s server=%s replica=%s", model, server.name, stub)
        server.parked.drop(stub)
        self.cluster.changed(server=server.name)
        self._begin(server.name, stub, self._unload(server.name, model))

    def disown(self, server: ServerName, replica: ReplicaId, model: str) -> None:
        """An agent shows a replica that nobody can serve."""
        self.note(replica, parks=False)
        self.release(server, replica, model)

    def unload_all_parked(self, model: str, but: frozenset[str] = frozenset()) -> None:
        """The model's on every server; not those that an engine of one of these definitions could start on."""
        for server in self.cluster.servers.values():
            for stub in server.parked.of_model(model):
                if not but or definition_of(stub) not in ("", *but):
                    self.unload_parked(server, stub, model)

    async def _release_and_unload(self, server: ServerName, replica: ReplicaId, model: str) -> None:
        await self.effects.release_engine(server, replica, self.epoch())
        await self._unload(server, model)

    async def _unload(self, server: ServerName, model: str) -> None:
        """An unload names only the model: where a newer stub is there or on its way, its load replaced this one."""
        newer = any(other.model.name == model for other in self.cluster.on_server(server))
        known = self.cluster.servers.get(server)  # None: it is gone, and what was there with it
        if not newer and known is not None and not known.parked.of_model(model):
            await self.effects.unload_model(server, model)

    def _begin(self, server: ServerName, replica: ReplicaId, effect: Work) -> asyncio.Task[None]:
        task = self.spawn(_logged(server, replica, effect))
        self._under_way[server][replica] = task
        task.add_done_callback(lambda _: self._under_way[server].pop(replica, None))
        return task


async def _logged(server: ServerName, replica: ReplicaId, effect: Work) -> None:
    try:
        await effect
    except EffectFailed as error:
        logger.warning("release_failed server=%s replica=%s error=%s", server, replica, error)
