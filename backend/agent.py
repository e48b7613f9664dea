"""The node agent's state machine: replicas, their workers and stubs, the devices' ledgers.

One asyncio loop owns all of it. A replica is a loaded worker and, once Triton has started it, a stub; it ends when
either ends, and whoever watches hears of it at once; its memory counts as granted until its worker's process has gone.
A stub whose worker was parked, or died, waits for the engine of another start (`parked_stubs.py`).
Workers and stubs outlive an agent: they reconnect and say what
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
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace

from serverless_triton.backend.async_channel import AsyncChannel
from serverless_triton.backend.channel import ChannelClosed
from serverless_triton.backend.device_map import Share
from serverless_triton.backend.devices import Devices
from serverless_triton.backend.epochs import Epochs
from serverless_triton.backend.ledger import NoRoom
from serverless_triton.backend.messages import (
    Acquire,
    Attached,
    Failed,
    Granted,
    Load,
    Loaded,
    ModelSpec,
    ProtocolError,
    Serve,
    WireShare,
    WorkerHello,
)
from serverless_triton.backend.parked_stubs import NotParked, ParkedStub, ParkedStubs
from serverless_triton.backend.replica import Replica, StartFailed
from serverless_triton.backend.worker_pool import WorkerLink, WorkerPool
from serverless_triton.loader.errors import CheckpointError

logger = logging.getLogger(__name__)

TAKE_TIMEOUT_S = 60.0
ADOPTION_GRACE_S = 5.0
STUB_PATIENCE_S = 150.0  # longer than a scheduler waits for a start: by then nobody will bring the stub
ANSWER_PATIENCE_S = 5.0  # how long a parked stub may take to say that it has its engine
REMEMBERED_ENDS = 4096


CallLater = Callable[[float, Callable[[], None]], object]


def _call_later(delay_s: float, callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(delay_s, callback)


class NodeAgent:
    """One node's replicas. Every method runs on the agent's loop."""

    def __init__(
        self, pool: WorkerPool, devices: Devices, call_later: CallLater = _call_later, epochs: Epochs | None = None
    ) -> None:
        self.pool = pool
        self.devices = devices
        self.replicas: dict[str, Replica] = {}
        self.parked = ParkedStubs()
        self.epochs = epochs or Epochs()
        self.version = 1
        self._changed = asyncio.Event()
        self._call_later = call_later
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._ending: dict[str, asyncio.Task[None]] = {}  # by replica, until its worker's memory is free
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
        self.epochs.check(epoch)

    async def start(
        self, replica_id: str, model: str, parameters: dict[str, str], parked: str | None = None
    ) -> tuple[Loaded, float | None]:
        """A warm engine for the replica, and when its stub came if it had to wait; idempotent. Raises StartFailed.

        With `parked` it starts on that stub, and the two are connected when this returns.
        """
        replica = self.replicas.get(replica_id) or self._begin(replica_id, model, parameters, parked)
        loaded = await asyncio.shield(replica.loaded)
        if replica.attached is not None:
            loaded_s = time.monotonic()
            await asyncio.shield(replica.attached)
            loaded = replace(loaded, spans=[*loaded.spans, ("stub.attach", loaded_s, time.monotonic())])
        return loaded, replica.stub_came_s

    async def release(self, replica_id: str) -> None:
        """Returns when the replica's worker is gone. An unknown replica never starts afterwards."""
        self.parked.forget(replica_id)
        await self._finish(replica_id, StartFailed("CANCELLED", f"replica {replica_id} was released"), drops_stub=True)

    async def park(self, replica_id: str) -> None:
        """As `release`, but its stub stays and waits for the next engine."""
        await self._finish(replica_id, StartFailed("CANCELLED", f"replica {replica_id} was parked"))

    async def _finish(self, replica_id: str, why: StartFailed, *, drops_stub: bool = False) -> None:
        replica = self.replicas.get(replica_id)
        if replica is None:
            self._remember_end(replica_id)
        else:
            self._end(replica, why, drops_stub=drops_stub)
        if replica_id in self._ending:
            await asyncio.shield(self._ending[replica_id])

    # A replica's life

    def _begin(self, replica_id: str, model: str, parameters: dict[str, str], parked: str | None = None) -> Replica:
        if replica_id in self._ended:
            raise StartFailed("CANCELLED", f"replica {replica_id} of '{model}' has ended")
        try:
            parts = self.devices.parts(ModelSpec.parse(parameters))
            self.devices.check(parts, self._ending)
            stub = None if parked is None else self.parked.take(parked, model, parameters)
        except NotParked as error:
            raise StartFailed("UNAVAILABLE", str(error)) from error
        except (ValueError, CheckpointError) as error:
            raise StartFailed("INVALID_ARGUMENT", f"failed to load '{model}': {error}") from error
        except NoRoom as error:
            raise StartFailed("RESOURCE_EXHAUSTED", f"failed to load '{model}': {error}") from error
        replica = self._record(replica_id, model, parameters, parts)
        with contextlib.suppress(NoRoom):  # `_load` waits for it
            replica.shares = self.devices.grant(replica_id, parts)
        if stub is None:
            self._expect_both_halves(replica, STUB_PATIENCE_S)
        else:
            self._prepare_waking(replica, stub)
        self._spawn(self._load(replica))
        return replica

    def _prepare_waking(self, replica: Replica, stub: ParkedStub) -> None:
        replica.woken, replica.attached = stub, asyncio.get_running_loop().create_future()
        replica.attached.add_done_callback(lambda f: f.cancelled() or f.exception())  # silent if nobody waits for it
        self._spawn(self._wake(replica, stub))

    async def _wake(self, replica: Replica, stub: ParkedStub) -> None:
        """Connect the parked stub once the engine is warm; it answers with Attached."""
        try:
            await asyncio.shield(replica.loaded)
            await self._introduce(replica, stub.channel)
        except StartFailed as error:
            self._end(replica, error)
            return
        self._call_later(ANSWER_PATIENCE_S, lambda: self._give_up_waking(replica))

    def _give_up_waking(self, replica: Replica) -> None:
        if replica.attached is not None and not replica.attached.done():
            why = StartFailed("UNAVAILABLE", f"the parked stub of '{replica.model}' does not answer")
            self._end(replica, why, drops_stub=True)

    def _record(self, replica_id: str, model: str, parameters: dict[str, str], parts: Sequence[int]) -> Replica:
        loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        loaded.add_done_callback(lambda f: f.cancelled() or f.exception())  # silent if nobody waits for it
        replica = Replica(replica_id, model, parameters, parts, loaded)
        self.replicas[replica_id] = replica
        self.touch()
        return replica

    async def _load(self, replica: Replica) -> None:
        try:
            await self._await_grant(replica)
            if replica.ended.is_set():
                return
            worker = await self.pool.take(TAKE_TIMEOUT_S)
        except (NoRoom, TimeoutError) as error:
            code = "RESOURCE_EXHAUSTED" if isinstance(error, NoRoom) else "UNAVAILABLE"
            self._end(replica, StartFailed(code, f"failed to load '{replica.model}': {error}"))
            return
        if replica.ended.is_set():
            await worker.kill()
            return
        self._employ(replica, worker)
        with contextlib.suppress(ChannelClosed):  # its end is noticed by `_follow_worker`
            await worker.channel.send(self._load_of(replica))

    def _load_of(self, replica: Replica) -> Load:
        shares = [share.to_wire() for share in replica.shares] if self.devices.hold_weights else []
        return Load(replica=replica.id, model=replica.model, parameters=replica.parameters, shares=shares)

    async def _await_grant(self, replica: Replica) -> None:
        """Memory of replicas that are ending is as good as free: their workers have been killed. Raises NoRoom."""
        while not replica.ended.is_set() and not replica.shares:
            try:
                replica.shares = self.devices.grant(replica.id, replica.parts)
                return
            except NoRoom:
                self.devices.check(replica.parts, self._ending)
            await asyncio.wait(self._ending.values(), return_when=asyncio.FIRST_COMPLETED)

    def _employ(self, replica: Replica, worker: WorkerLink) -> None:
        replica.worker = worker
        self._spawn(self._follow_worker(replica, worker))

    async def _follow_worker(self, replica: Replica, worker: WorkerLink) -> None:
        listening = asyncio.ensure_future(self._hear_worker(replica, worker))
        await asyncio.wait({listening, worker.ended}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        self._end(replica, StartFailed("UNAVAILABLE", f"the engine worker of '{replica.model}' died"))

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
                    self.pool.learn([replica.parameters])

    def _end(self, replica: Replica, why: StartFailed, *, drops_stub: bool = False) -> None:
        """Forget the replica, tell everyone, kill its worker; its stub waits for another, or is dropped. Idempotent."""
        if self.replicas.get(replica.id) is not replica:
            return
        del self.replicas[replica.id]
        self._remember_end(replica.id)
        self._free(replica)
        if replica.stub_channel is not None and not drops_stub:
            self._park(replica.id, replica.model, replica.parameters, replica.stub_channel)
        for waited_for in (replica.loaded, replica.attached):
            if waited_for is not None and not waited_for.done():
                waited_for.set_exception(why)
        replica.ended.set()
        logger.info("replica_ended replica=%s model=%s reason=%s", replica.id, replica.model, why)
        self.touch()

    def _park(self, replica_id: str, model: str, parameters: dict[str, str], channel: AsyncChannel) -> None:
        self.parked.park(ParkedStub(replica=replica_id, model=model, parameters=parameters, channel=channel))
        logger.info("stub_parked replica=%s model=%s", replica_id, model)
        self.touch()

    def _free(self, replica: Replica) -> None:
        """Give the grant back, but not before the worker's process has gone, and its memory with it."""
        if replica.worker is None:
            self.devices.give_back(replica.id)
        else:
            self._ending[replica.id] = self._spawn(self._bury(replica.id, replica.worker))

    async def _bury(self, replica_id: str, worker: WorkerLink) -> None:
        await worker.kill()
        del self._ending[replica_id]
        self.devices.give_back(replica_id)
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
        replica = self._adopt(hello.replica, hello.model, hello.parameters, hello.shares)
        if not replica.loaded.done():
            loaded = Loaded(replica=replica.id, tier="dram", bytes=0, spans=[], exactness=hello.exactness)
            replica.loaded.set_result(loaded)
        self._employ(replica, worker)
        self.touch()

    def _adopt(
        self, replica_id: str, model: str, parameters: dict[str, str], wire_shares: Sequence[WireShare] = ()
    ) -> Replica:
        known, shares = self.replicas.get(replica_id), tuple(map(Share.of_wire, wire_shares))
        if known is not None:
            if shares:  # its stub came first, and could not tell them
                self.devices.adopt(replica_id, shares, known.device_bytes)
                known.shares = shares
            return known
        parts = [share.bytes for share in shares] or self.devices.parts(ModelSpec.parse(parameters))
        self.devices.adopt(replica_id, shares, sum(parts))
        replica = self._record(replica_id, model, parameters, parts)
        replica.shares = shares
        self._expect_both_halves(replica, ADOPTION_GRACE_S)
        logger.info("replica_adopted replica=%s model=%s", replica_id, model)
        return replica

    def _expect_both_halves(self, replica: Replica, patience_s: float) -> None:
        def end_a_half() -> None:
            if replica.missing_half is not None:
                why = f"the {replica.missing_half} of '{replica.model}' did not come within {patience_s:.0f} s"
                self._end(replica, StartFailed("UNAVAILABLE", why))

        self._call_later(patience_s, end_a_half)

    async def welcome_stub(self, channel: AsyncChannel, request: Acquire) -> None:
        """Give a stub its engine, or park it, then keep its socket until it ends; returns then."""
        try:
            await self._attach_stub(channel, request)
        except StartFailed as error:
            with contextlib.suppress(ChannelClosed):
                await channel.send(Failed(code=error.code, message=str(error)))
            return
        with contextlib.suppress(ChannelClosed, ProtocolError):
            while True:
                message = await channel.receive()
                if isinstance(message, Attached):
                    self._note_attached(message.replica, channel)
        self._stub_left(channel)

    def _note_attached(self, replica_id: str, channel: AsyncChannel) -> None:
        replica = self.replicas.get(replica_id)
        if replica is None or replica.attached is None:
            return
        if replica.stub_channel is channel and not replica.attached.done():
            replica.attached.set_result(None)
            self.touch()

    def _stub_left(self, channel: AsyncChannel) -> None:
        for replica in [one for one in self.replicas.values() if one.stub_channel is channel]:
            self._end(replica, StartFailed("UNAVAILABLE", f"the stub of '{replica.model}' ended"), drops_stub=True)
        if self.parked.left(channel):
            self.touch()

    async def _attach_stub(self, channel: AsyncChannel, request: Acquire) -> None:
        if request.replica is not None and request.parked:
            self._park(request.replica, request.model, request.parameters, channel)
            return
        if request.replica is not None and request.attached:
            self._adopt(request.replica, request.model, request.parameters).stub = channel
            self.touch()
            return
        replica_id = request.replica or f"{request.model}-{secrets.token_hex(4)}"
        replica = self.replicas.get(replica_id) or self._begin(replica_id, request.model, request.parameters)
        replica.stub_came_s = time.monotonic()
        await asyncio.shield(replica.loaded)
        await self._introduce(replica, channel)

    async def _introduce(self, replica: Replica, channel: AsyncChannel) -> None:
        """Connect the stub and the worker with a socket of their own; tokens never pass through the agent."""
        if replica.ended.is_set():
            raise StartFailed("UNAVAILABLE", f"the engine worker of '{replica.model}' died")
        if replica.worker is None or replica.stub is not None:
            raise StartFailed("UNAVAILABLE", f"replica {replica.id} of '{replica.model}' has a stub already")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            peer = "engine worker"
            try:
                await replica.worker.channel.send(Serve(replica=replica.id), [ours.fileno()])
                peer = "stub"
                await channel.send(Granted(replica=replica.id), [theirs.fileno()])
            except ChannelClosed as error:
                raise StartFailed("UNAVAILABLE", f"the {peer} of '{replica.model}' died") from error
        replica.stub, replica.woken = channel, None
        self.touch()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
