"""The node agent's state machine: replicas, their workers and stubs, the device's ledger.

One asyncio loop owns all of it. A replica is a loaded worker and, once Triton has started it, a stub; it ends when
either ends, and whoever watches hears of it at once. Workers and stubs outlive an agent: they reconnect and say what
they are, and a new agent adopts them. Sockets are `agent_server.py`'s, the scheduler's gRPC is `agent_service.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass, field

from serverless_triton.backend.async_channel import AsyncChannel
from serverless_triton.backend.channel import ChannelClosed
from serverless_triton.backend.ledger import DeviceLedger, NoRoom
from serverless_triton.backend.messages import (
    Acquire,
    Failed,
    Granted,
    Load,
    Loaded,
    ModelSpec,
    ProtocolError,
    Serve,
    WorkerHello,
)
from serverless_triton.backend.worker_pool import WorkerLink, WorkerPool

logger = logging.getLogger(__name__)

TAKE_TIMEOUT_S = 60.0
ADOPTION_GRACE_S = 5.0
REMEMBERED_ENDS = 4096


class StartFailed(Exception):
    """A replica could not be started. `code` is a gRPC status name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class StaleEpoch(Exception):
    """The permit's epoch is older than one this agent has seen: another scheduler leads (decision 7)."""


@dataclass(slots=True)
class Replica:
    """What the agent knows of one replica. `loaded` resolves when its engine is warm, or to why it is not."""

    id: str
    model: str
    parameters: dict[str, str]
    device_bytes: int
    loaded: asyncio.Future[Loaded]
    worker: WorkerLink | None = None
    stub: AsyncChannel | None = None
    stub_came_s: float | None = None  # on this host's monotonic clock
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_loaded(self) -> bool:
        return self.loaded.done() and not self.loaded.cancelled() and self.loaded.exception() is None


class NodeAgent:
    """One node's replicas. Every method runs on the agent's loop."""

    def __init__(self, pool: WorkerPool, ledger: DeviceLedger) -> None:
        self.pool = pool
        self.ledger = ledger
        self.replicas: dict[str, Replica] = {}
        self.highest_epoch = 0
        self.version = 1
        self._changed = asyncio.Event()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    # Watching

    def touch(self) -> None:
        """Something that watchers see has changed."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed_since(self, version: int) -> None:
        while self.version <= version:
            await self._changed.wait()

    # The scheduler's permits

    def check_epoch(self, epoch: int) -> None:
        """Raises StaleEpoch. Remembers the highest epoch seen."""
        if epoch < self.highest_epoch:
            raise StaleEpoch(f"epoch {epoch} is over; {self.highest_epoch} leads")
        self.highest_epoch = epoch

    async def start(self, replica_id: str, model: str, parameters: dict[str, str]) -> tuple[Loaded, float | None]:
        """A warm engine for the replica, and when its stub came if it had to wait; idempotent. Raises StartFailed."""
        replica = self.replicas.get(replica_id) or self._begin(replica_id, model, parameters)
        return await asyncio.shield(replica.loaded), replica.stub_came_s

    async def release(self, replica_id: str) -> None:
        """Returns when the replica's worker is gone. An unknown replica never starts afterwards."""
        replica = self.replicas.get(replica_id)
        if replica is None:
            self._remember_end(replica_id)
            return
        self._end(replica, StartFailed("CANCELLED", f"replica {replica_id} was released"))
        if replica.worker is not None:
            await replica.worker.kill()

    # A replica's life

    def _begin(self, replica_id: str, model: str, parameters: dict[str, str]) -> Replica:
        if replica_id in self._ended:
            raise StartFailed("CANCELLED", f"replica {replica_id} of '{model}' has ended")
        try:
            spec = ModelSpec.parse(parameters)
            self.ledger.grant(replica_id, spec.device_bytes)
        except ValueError as error:
            raise StartFailed("INVALID_ARGUMENT", f"failed to load '{model}': {error}") from error
        except NoRoom as error:
            raise StartFailed("RESOURCE_EXHAUSTED", f"failed to load '{model}': {error}") from error
        replica = self._record(replica_id, model, parameters, spec.device_bytes)
        self._spawn(self._load(replica))
        return replica

    def _record(self, replica_id: str, model: str, parameters: dict[str, str], device_bytes: int) -> Replica:
        loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        loaded.add_done_callback(
            lambda f: f.cancelled() or f.exception()
        )  # heard by whoever waits; silent if nobody does
        replica = Replica(replica_id, model, parameters, device_bytes, loaded)
        self.replicas[replica_id] = replica
        self.touch()
        return replica

    async def _load(self, replica: Replica) -> None:
        try:
            worker = await self.pool.take(TAKE_TIMEOUT_S)
        except TimeoutError as error:
            self._end(replica, StartFailed("UNAVAILABLE", f"failed to load '{replica.model}': {error}"))
            return
        if replica.ended.is_set():
            await worker.kill()
            return
        self._employ(replica, worker)
        with contextlib.suppress(ChannelClosed):  # its end is noticed by `_follow_worker`
            await worker.channel.send(Load(replica=replica.id, model=replica.model, parameters=replica.parameters))

    def _employ(self, replica: Replica, worker: WorkerLink) -> None:
        replica.worker = worker
        self._spawn(self._follow_worker(replica, worker))

    async def _follow_worker(self, replica: Replica, worker: WorkerLink) -> None:
        listening = asyncio.ensure_future(self._hear_worker(replica, worker))
        await asyncio.wait({listening, worker.ended}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        self._end(replica, StartFailed("UNAVAILABLE", f"the engine worker of '{replica.model}' died"))
        await worker.kill()

    async def _hear_worker(self, replica: Replica, worker: WorkerLink) -> None:
        """Until the worker's socket ends or it reports a failure."""
        with contextlib.suppress(ChannelClosed, ProtocolError):
            while True:
                message = await worker.channel.receive()
                if isinstance(message, Failed):
                    self._end(replica, StartFailed(message.code, message.message))
                    return
                if isinstance(message, Loaded) and not replica.loaded.done():
                    replica.loaded.set_result(message)
                    self.touch()
                    await self.pool.learn([replica.parameters])

    def _end(self, replica: Replica, why: StartFailed) -> None:
        """Forget the replica, free its grant, tell everyone. Idempotent."""
        if self.replicas.get(replica.id) is not replica:
            return
        del self.replicas[replica.id]
        self._remember_end(replica.id)
        self.ledger.give_back(replica.id)
        if not replica.loaded.done():
            replica.loaded.set_exception(why)
        replica.ended.set()
        logger.info("replica_ended replica=%s model=%s reason=%s", replica.id, replica.model, why)
        self.touch()

    def _remember_end(self, replica_id: str) -> None:
        self._ended[replica_id] = None
        while len(self._ended) > REMEMBERED_ENDS:
            self._ended.popitem(last=False)

    # Who connects

    async def welcome_worker(self, channel: AsyncChannel, hello: WorkerHello) -> None:
        """A new idle worker, or one that served under an earlier agent."""
        try:
            worker = WorkerLink(channel)
        except ProcessLookupError:
            channel.close()
            return
        if hello.replica is None or hello.model is None:
            await self.pool.add(worker)
            self.touch()
            return
        replica = self._adopt(hello.replica, hello.model, hello.parameters)
        if not replica.loaded.done():
            replica.loaded.set_result(Loaded(replica=replica.id, tier="dram", bytes=0, spans=[]))
        self._employ(replica, worker)
        self.touch()

    def _adopt(self, replica_id: str, model: str, parameters: dict[str, str]) -> Replica:
        known = self.replicas.get(replica_id)
        if known is not None:
            return known
        device_bytes = ModelSpec.parse(parameters).device_bytes
        self.ledger.adopt(replica_id, device_bytes)
        replica = self._record(replica_id, model, parameters, device_bytes)
        self._spawn(self._expect_both_halves(replica))
        logger.info("replica_adopted replica=%s model=%s", replica_id, model)
        return replica

    async def _expect_both_halves(self, replica: Replica) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(replica.ended.wait(), ADOPTION_GRACE_S)
        if replica.worker is None or replica.stub is None:
            await self.release(replica.id)

    async def welcome_stub(self, channel: AsyncChannel, request: Acquire) -> None:
        """Give a stub its engine, then keep its socket until it ends; returns then."""
        try:
            replica = await self._attach_stub(channel, request)
        except StartFailed as error:
            with contextlib.suppress(ChannelClosed):
                await channel.send(Failed(code=error.code, message=str(error)))
            return
        with contextlib.suppress(ChannelClosed, ProtocolError):
            await channel.receive()  # a stub says nothing more
        if replica.stub is channel:
            self._end(replica, StartFailed("UNAVAILABLE", f"the stub of '{replica.model}' ended"))
            if replica.worker is not None:
                await replica.worker.kill()

    async def _attach_stub(self, channel: AsyncChannel, request: Acquire) -> Replica:
        if request.attached and request.replica is not None:
            replica = self._adopt(request.replica, request.model, request.parameters)
            replica.stub = channel
            self.touch()
            return replica
        replica_id = request.replica or f"{request.model}-{secrets.token_hex(4)}"
        replica = self.replicas.get(replica_id) or self._begin(replica_id, request.model, request.parameters)
        replica.stub_came_s = time.monotonic()
        await asyncio.shield(replica.loaded)
        await self._introduce(replica, channel)
        return replica

    async def _introduce(self, replica: Replica, channel: AsyncChannel) -> None:
        """Connect the stub and the worker with a socket of their own; tokens never pass through the agent."""
        if replica.ended.is_set():
            raise StartFailed("UNAVAILABLE", f"the engine worker of '{replica.model}' died")
        if replica.worker is None or replica.stub is not None:
            raise StartFailed("UNAVAILABLE", f"replica {replica.id} of '{replica.model}' has a stub already")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                await replica.worker.channel.send(Serve(replica=replica.id), [ours.fileno()])
                await channel.send(Granted(replica=replica.id), [theirs.fileno()])
            except ChannelClosed as error:
                raise StartFailed("UNAVAILABLE", f"the engine worker of '{replica.model}' died") from error
        replica.stub = channel
        self.touch()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
