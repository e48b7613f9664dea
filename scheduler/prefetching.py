"""Checkpoints in DRAM before anybody asks for them: what `lifecycle.py` says is worth it, carried out.

What does not go well is tried again after a while, elsewhere or there; a start never waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from serverless_triton.scheduler.admission import ServerName
from serverless_triton.scheduler.cluster import Cluster
from serverless_triton.scheduler.departures import Work
from serverless_triton.scheduler.effects import EffectFailed, Effects
from serverless_triton.scheduler.lifecycle import Wish, prefetches
from serverless_triton.scheduler.view import ModelView

logger = logging.getLogger(__name__)

AGAIN_S = 30.0  # after a prefetch that failed


@dataclass(slots=True, kw_only=True)
class Prefetching:
    """The control loop's. `budget_bytes` a server; pinned models' checkpoints are kept beside it."""

    cluster: Cluster
    effects: Effects
    epoch: Callable[[], int]
    clock: Callable[[], float]
    spawn: Callable[[Work], asyncio.Task[None]]
    budget_bytes: int
    _brought: dict[ServerName, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))  # bytes by checkpoint
    _under_way: set[tuple[ServerName, str]] = field(default_factory=set)
    _not_before_s: dict[str, float] = field(default_factory=dict)  # by checkpoint
    _pinned: dict[str, ServerName] = field(default_factory=dict)  # by checkpoint

    def wish(self, wishes: Iterable[Wish]) -> None:
        """Begin what is worth it, and is not there or on its way. Pinned checkpoints among them are pinned there."""
        now_s = self.clock()
        coming = {checkpoint for _, checkpoint in self._under_way}
        models: dict[str, ModelView] = {}
        for wish in wishes:
            checkpoint = wish.model.checkpoint
            if checkpoint and checkpoint not in coming and self._not_before_s.get(checkpoint, now_s) <= now_s:
                models[wish.model.name] = wish.model
        due = [wish for wish in wishes if wish.model.name in models]
        for chosen in prefetches(self.cluster.view(), due, self._held_bytes(), self.budget_bytes):
            self._begin(chosen.server, models[chosen.model])

    def keep_pinned(self, models: Sequence[ModelView]) -> None:
        """These are all that are pinned: each stays in the DRAM of one server, others may go."""
        wanted = {model.checkpoint: model for model in models if model.checkpoint}
        for checkpoint in sorted(self._pinned.keys() - wanted.keys()):
            self.spawn(self._pin(self._pinned.pop(checkpoint), checkpoint, pinned=False))
        servers = {server.name: server for server in self.cluster.view().servers}
        for checkpoint, model in sorted(wanted.items()):
            if self._pinned.get(checkpoint) in servers or self._not_before_s.get(checkpoint, 0.0) > self.clock():
                continue
            fitting = [one for one in servers.values() if one.dram_bytes >= model.checkpoint_bytes]
            if fitting:
                best = min(fitting, key=lambda one: (checkpoint not in one.in_dram, -one.dram_bytes, one.name)).name
                self._pinned[checkpoint] = best
                self.spawn(self._pin(best, checkpoint, pinned=True))

    def has_pinned(self, checkpoint: str) -> ServerName | None:
        """Where it is kept."""
        return self._pinned.get(checkpoint)

    def bring(self, server: ServerName, model: ModelView) -> asyncio.Task[None] | None:
        """There, now, whatever the budget: for a server whose own is leaving. None where it is there already."""
        is_there = model.checkpoint in self.cluster.servers[server].in_dram
        if not model.checkpoint or is_there or (server, model.checkpoint) in self._under_way:
            return None
        return self._begin(server, model)

    def _held_bytes(self) -> dict[ServerName, int]:
        """What servers still have of it; what is used by a replica has served its purpose."""
        held: dict[ServerName, int] = {}
        for name, brought in self._brought.items():
            server = self.cluster.servers.get(name)
            used = {replica.model.checkpoint for replica in self.cluster.on_server(name)}
            for checkpoint in list(brought):
                is_there = server is not None and checkpoint in server.in_dram
                if checkpoint in used or not (is_there or (name, checkpoint) in self._under_way):
                    del brought[checkpoint]
            held[name] = sum(brought.values())
        return held

    def _begin(self, server: ServerName, model: ModelView) -> asyncio.Task[None]:
        self._under_way.add((server, model.checkpoint))
        self._brought[server][model.checkpoint] = model.checkpoint_bytes
        return self.spawn(self._prefetch(server, model))

    async def _prefetch(self, server: ServerName, model: ModelView) -> None:
        logger.info("prefetch model=%s server=%s bytes=%d", model.name, server, model.checkpoint_bytes)
        try:
            await self.effects.prefetch(server, model.checkpoint, self.epoch())
        except EffectFailed as error:
            self._later(model.checkpoint, "prefetch", server, error)
        finally:
            self._under_way.discard((server, model.checkpoint))

    async def _pin(self, server: ServerName, checkpoint: str, *, pinned: bool) -> None:
        logger.info("%s server=%s checkpoint=%s", "pin" if pinned else "unpin", server, checkpoint)
        try:
            await self.effects.pin(server, checkpoint, pinned, self.epoch())
        except EffectFailed as error:
            self._later(checkpoint, "pin", server, error)
            if pinned and self._pinned.get(checkpoint) == server:
                del self._pinned[checkpoint]

    def _later(self, checkpoint: str, what: str, server: ServerName, error: EffectFailed) -> None:
        logger.warning("%s_failed server=%s checkpoint=%s error=%s", what, server, checkpoint, error)
        self._not_before_s[checkpoint] = self.clock() + AGAIN_S
