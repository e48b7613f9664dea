"""What the control loop can do to the world. Real ones are in `triton_effects.py`; the recorded fake here drives
tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from serverless_triton.scheduler.admission import Exactness, ReplicaId, ServerName, Span


class EffectFailed(Exception):
    """An effect did not happen. `code` is a gRPC status name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOrder:
    """Which replica to start for which model; `parameters` as in its config.pbtxt. The epoch is the permit's (decision
    7). With `parked` it starts on that stub, and Triton has nothing to do. A `foreign` model's is Triton's alone.
    """

    epoch: int
    replica: ReplicaId
    model: str
    parameters: Mapping[str, str]
    parked: ReplicaId | None = None
    foreign: bool = False
    measured: tuple[str, ...] = ()  # models of which is to be found out what they take of the host's memory


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStarted:
    """A warm engine: where its bytes came from, and its spans on our clock. `version` is the first node state showing
    it.
    """

    version: int
    tier: str
    bytes: int
    spans: tuple[Span, ...]
    exactness: Exactness | None = None
    stub_waited_from_s: float | None = None  # on our clock; None: the engine was there before Triton's stub came
    host_bytes: int | None = None  # by which a foreign model's load grew Triton; None: nobody looked


class Effects(Protocol):
    """Each is idempotent, bounded in time by the implementation, and raises EffectFailed."""

    async def start_engine(self, server: ServerName, order: EngineOrder) -> EngineStarted:
        """Have the server's agent load the replica's engine; returns when it is warm."""

    async def load_model(self, server: ServerName, model: str, replica: ReplicaId) -> None:
        """Have the server's Triton start the model's stub for this replica; returns when Triton calls it ready."""

    async def release_engine(self, server: ServerName, replica: ReplicaId, epoch: int) -> None:
        """Have the agent end the engine; returns when its memory is free."""

    async def park_engine(self, server: ServerName, replica: ReplicaId, epoch: int) -> None:
        """As `release_engine`, but the replica's stub stays in Triton and waits for another engine."""

    async def unload_model(self, server: ServerName, model: str) -> None:
        """Have Triton begin to unload the model; the rest of it takes a second and nobody waits."""

    async def load_foreign(self, server: ServerName, model: str) -> None:
        """Have the server's Triton load another backend's model; returns when Triton calls it ready."""

    async def end_foreign(self, server: ServerName, model: str) -> None:
        """Have Triton unload another backend's model; returns when it is gone and its memory free."""

    async def measure(self, server: ServerName, models: tuple[str, ...]) -> int:
        """Bytes that the server's Triton has of its own, with the processes that it runs for these models."""

    async def prefetch(self, server: ServerName, checkpoint: str, epoch: int) -> None:
        """Have the server's agent read a checkpoint into DRAM, behind every load; returns when it is there."""

    async def pin(self, server: ServerName, checkpoint: str, pinned: bool, epoch: int) -> None:
        """Have the agent keep a checkpoint in DRAM, brought there first, or let it go; returns at once."""

    async def loaded_models(self, server: ServerName) -> frozenset[str]:
        """What Triton has in memory, models on their way in or out included, and those that left the repository."""

    async def members(self, server: ServerName, model: str) -> tuple[str, ...] | None:
        """Of an ensemble that Triton has in memory, none of any other; None where the model is of our own backend, or
        gone meanwhile.
        """


@dataclass
class FakeEffects:
    """Records every call; each one waits until the test resolves it, or succeeds at once where `automatic`."""

    automatic: bool = True
    exactness: Exactness | None = None  # of every engine
    loaded: frozenset[str] = frozenset()  # on every server
    ensembles: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of those, with their members
    generating: frozenset[str] = frozenset()  # of those, the ones of our backend
    measurements: list[int] = field(default_factory=list)  # in turn
    orders: list[EngineOrder] = field(default_factory=list)
    calls: list[tuple[str, ServerName, str]] = field(default_factory=list)
    pending: dict[tuple[str, ServerName, str], asyncio.Future[None]] = field(default_factory=dict)

    async def start_engine(self, server: ServerName, order: EngineOrder) -> EngineStarted:
        self.orders.append(order)
        await self._happen("start_engine", server, order.model)
        return EngineStarted(version=0, tier="ssd", bytes=0, spans=(), exactness=self.exactness)

    async def load_model(self, server: ServerName, model: str, replica: ReplicaId) -> None:
        await self._happen("load_model", server, model)

    async def release_engine(self, server: ServerName, replica: ReplicaId, epoch: int) -> None:
        await self._happen("release_engine", server, replica)

    async def park_engine(self, server: ServerName, replica: ReplicaId, epoch: int) -> None:
        await self._happen("park_engine", server, replica)

    async def unload_model(self, server: ServerName, model: str) -> None:
        await self._happen("unload_model", server, model)

    async def load_foreign(self, server: ServerName, model: str) -> None:
        await self._happen("load_foreign", server, model)

    async def end_foreign(self, server: ServerName, model: str) -> None:
        await self._happen("end_foreign", server, model)

    async def measure(self, server: ServerName, models: tuple[str, ...]) -> int:
        await self._happen("measure", server, " ".join(models))
        return self.measurements.pop(0)

    async def prefetch(self, server: ServerName, checkpoint: str, epoch: int) -> None:
        await self._happen("prefetch", server, checkpoint)

    async def pin(self, server: ServerName, checkpoint: str, pinned: bool, epoch: int) -> None:
        await self._happen("pin" if pinned else "unpin", server, checkpoint)

    async def loaded_models(self, server: ServerName) -> frozenset[str]:
        await self._happen("loaded_models", server, "")
        return self.loaded

    async def members(self, server: ServerName, model: str) -> tuple[str, ...] | None:
        await self._happen("members", server, model)
        return None if model in self.generating else self.ensembles.get(model, ())

    async def _happen(self, effect: str, server: ServerName, subject: str) -> None:
        self.calls.append((effect, server, subject))
        if not self.automatic:
            key = (effect, server, subject)
            self.pending[key] = asyncio.get_running_loop().create_future()
            await self.pending[key]

    def resolve(self, effect: str, server: ServerName, subject: str, error: EffectFailed | None = None) -> None:
        """Let the pending call succeed, or fail."""
        future = self.pending.pop((effect, server, subject))
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
