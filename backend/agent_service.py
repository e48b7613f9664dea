"""The agent's gRPC face for the scheduler: `agent.proto` over a NodeAgent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import grpc

from serverless_triton.backend import agent_pb2, agent_pb2_grpc
from serverless_triton.backend.agent import NodeAgent
from serverless_triton.backend.epochs import StaleEpoch
from serverless_triton.backend.messages import WireExactness
from serverless_triton.backend.parked_stubs import ParkedStub
from serverless_triton.backend.prefetches import Prefetches, status_code_of
from serverless_triton.backend.processes import private_bytes
from serverless_triton.backend.replica import Replica, StartFailed
from serverless_triton.backend.tiers import TierWatcher
from serverless_triton.loader.errors import LoaderError
from serverless_triton.loader.store_status import StoreStatus

T = TypeVar("T")

STATE_REPEATED_S = 2.0  # a watcher takes a longer silence for a dead machine

Context = grpc.aio.ServicerContext[Any, Any]


class AgentService(agent_pb2_grpc.NodeAgentServicer):
    """Turns calls into the agent's methods and its exceptions into status codes."""

    def __init__(
        self,
        node: str,
        agent: NodeAgent,
        tiers: TierWatcher,
        prefetches: Prefetches,
        measure: Callable[[Iterable[str]], int] = lambda models: 0,
    ) -> None:
        """`measure`: bytes of the node's Triton with some models' processes."""
        self._prefetches = prefetches
        self._node = node
        self._measure = measure
        self._agent = agent
        self._tiers = tiers

    async def Watch(self, request: agent_pb2.WatchRequest, context: Context) -> AsyncIterator[agent_pb2.NodeState]:
        while True:
            state = self._state()
            yield state
            with contextlib.suppress(asyncio.TimeoutError):  # nothing new: said again
                await asyncio.wait_for(self._agent.changed_since(state.version), STATE_REPEATED_S)

    async def Start(self, request: agent_pb2.StartRequest, context: Context) -> agent_pb2.StartReply:
        received_s = time.monotonic()
        await self._check_permit(request.epoch, context)
        try:
            loaded, stub_came_s = await self._agent.start(
                request.replica, request.model, dict(request.parameters), request.parked or None
            )
        except StartFailed as error:
            await context.abort(grpc.StatusCode[error.code], str(error))
        spans = [
            agent_pb2.StartSpan(name=name, start_s=start - received_s, end_s=end - received_s)
            for name, start, end in loaded.spans
        ]
        return agent_pb2.StartReply(
            version=self._agent.version,
            tier=loaded.tier,
            bytes=loaded.bytes,
            spans=spans,
            exactness=_exactness(loaded.exactness),
            stub_waited_from_s=None if stub_came_s is None else stub_came_s - received_s,
        )

    async def Release(self, request: agent_pb2.ReleaseRequest, context: Context) -> agent_pb2.ReleaseReply:
        await self._check_permit(request.epoch, context)
        await self._agent.release(request.replica)
        return agent_pb2.ReleaseReply(version=self._agent.version)

    async def Park(self, request: agent_pb2.ParkRequest, context: Context) -> agent_pb2.ParkReply:
        await self._check_permit(request.epoch, context)
        await self._agent.park(request.replica)
        return agent_pb2.ParkReply(version=self._agent.version)

    async def Measure(self, request: agent_pb2.MeasureRequest, context: Context) -> agent_pb2.MeasureReply:
        return agent_pb2.MeasureReply(bytes=self._measure(request.models))

    async def Prefetch(self, request: agent_pb2.PrefetchRequest, context: Context) -> agent_pb2.PrefetchReply:
        await self._check_permit(request.epoch, context)
        there = await _answered(self._prefetches.prefetch(request.checkpoint), context)
        return agent_pb2.PrefetchReply(bytes=there.bytes, read_s=there.read_s)

    async def Evict(self, request: agent_pb2.EvictRequest, context: Context) -> agent_pb2.EvictReply:
        await self._check_permit(request.epoch, context)
        return agent_pb2.EvictReply(images=await _answered(self._prefetches.evict(request.checkpoint), context))

    async def Pin(self, request: agent_pb2.PinRequest, context: Context) -> agent_pb2.PinReply:
        await self._check_permit(request.epoch, context)
        await _answered(self._prefetches.pin(request.checkpoint, pinned=request.pinned), context)
        return agent_pb2.PinReply()

    async def _check_permit(self, epoch: int, context: Context) -> None:
        try:
            self._agent.check_epoch(epoch)
        except StaleEpoch as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    def _state(self) -> agent_pb2.NodeState:
        agent, store = self._agent, self._tiers.status
        devices = agent.devices.shown()
        ids = {device.name: device.id for device in devices}
        state = agent_pb2.NodeState(
            node=self._node,
            version=agent.version,
            highest_epoch=agent.epochs.highest,
            device_memory_bytes=agent.devices.budget_bytes,
            device_granted_bytes=agent.devices.granted_bytes,
            device_holds_weights=agent.devices.hold_weights,
            devices=[agent_pb2.Device(**asdict(device)) for device in devices],
            workers_ready=agent.pool.has_forked,
            replicas=[*(_replica(one, ids) for one in agent.replicas.values()), *map(_parked, agent.parked)],
        )
        state.dram_bytes = self._tiers.dram_bytes  # while the store is away a model is not too large for the node
        if store is not None:
            _add_tiers(state, store)
        return state


def _add_tiers(state: agent_pb2.NodeState, store: StoreStatus) -> None:
    measured = store.bandwidth_bytes_per_second
    state.dram_leased_bytes = store.leased_bytes
    state.ssd_bytes_per_second = measured.get("ssd", store.throttle_bytes_per_second)
    state.remote_bytes_per_second = measured.get("remote", store.remote_throttle_bytes_per_second)
    state.copies.extend(store.ssd_cache.urls)
    for image in store.images:
        if image.state == "ready":
            leased = image.leases > 0
            state.images.add(checkpoint=str(image.path), bytes=image.bytes, leased=leased, pinned=image.pinned)
        elif image.state in ("empty", "loading"):
            state.transfers.add(checkpoint=image.path, bytes=image.bytes, read_bytes=image.read_bytes)


async def _answered(asked: Awaitable[T], context: Context) -> T:
    """What the store says, its errors as statuses."""
    try:
        return await asked
    except (LoaderError, ValueError) as error:
        await context.abort(grpc.StatusCode[status_code_of(error)], str(error))
        raise


def _replica(replica: Replica, ids: Mapping[str, int]) -> agent_pb2.Replica:
    engine_only = agent_pb2.LOADED if replica.is_loaded else agent_pb2.LOADING
    return agent_pb2.Replica(
        id=replica.id,
        model=replica.model,
        phase=agent_pb2.READY if replica.is_attached else engine_only,
        device_bytes=replica.device_bytes,
        worker_pid=replica.worker.pid if replica.worker else 0,
        stub_pid=replica.stub_channel.peer_pid if replica.stub_channel else 0,
        devices=sorted(ids[share.device] for share in replica.shares),
        exactness=_exactness(replica.exactness),
    )


def _exactness(told: WireExactness) -> agent_pb2.Exactness | None:
    return agent_pb2.Exactness(**told) if told else None


def _parked(stub: ParkedStub) -> agent_pb2.Replica:
    pid = stub.channel.peer_pid
    return agent_pb2.Replica(
        id=stub.replica,
        model=stub.model,
        phase=agent_pb2.PARKED,
        stub_pid=pid,
        stub_private_bytes=private_bytes(pid),
    )
