"""The real effects: a node agent's gRPC for engines, and for what changes its Triton; each carries our epoch."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from serverless_triton.backend import agent_pb2, agent_pb2_grpc, triton_control_pb2, triton_control_pb2_grpc
from serverless_triton.backend.messages import REPLICA_PARAMETER
from serverless_triton.scheduler.admission import ADMISSION_SPAN, ReplicaId, ServerName, Span
from serverless_triton.scheduler.catalogue import SERVED_BACKEND
from serverless_triton.scheduler.definitions import definition_of
from serverless_triton.scheduler.effects import EffectFailed, EngineOrder, EngineStarted
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.node_links import BROKEN_LINK, NodeLinks, tells_of_link
from serverless_triton.scheduler.server_watch import CHANNEL_OPTIONS, exactness_of

logger = logging.getLogger(__name__)

_AGENT_SPAN = "agent.start"
_NOT_LOADED = ("NOT_FOUND", "UNAVAILABLE", "INVALID_ARGUMENT")  # what Triton says of a model that is on its way out
_ASK_AGAIN_S = 0.05  # whether a model is gone: Triton tells nobody; whether we lead (again)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddresses:
    """host:port of a server's Triton (gRPC) and of its node's agent."""

    triton: str
    agent: str


class _Stubs(dict[ServerName, Any]):
    """By server; of one that is gone there is none."""

    def __missing__(self, server: ServerName) -> Any:
        raise EffectFailed("UNAVAILABLE", f"server {server} is gone")


class TritonEffects:
    """Implements `Effects` with one channel per server and service."""

    def __init__(
        self,
        servers: Mapping[ServerName, ServerAddresses],
        config_of: Callable[[str, str], model_config_pb2.ModelConfig],
        clock: Callable[[], float],
        *,
        links: NodeLinks,
        epoch: Callable[[], int],
        may_act: Callable[[], bool] = lambda: True,
        load_timeout_s: float,
        release_timeout_s: float,
    ) -> None:
        """`epoch` is our leadership's, which may rise while it lasts. As long as it may have run out, effects wait."""
        self._config_of = config_of
        self._clock = clock
        self._links = links
        self._epoch = epoch
        self._may_act = may_act
        self._load_timeout_s = load_timeout_s
        self._release_timeout_s = release_timeout_s
        self._channels: dict[ServerName, tuple[grpc.aio.Channel, ...]] = {}
        self._tritons, self._agents, self._controls = _Stubs(), _Stubs(), _Stubs()
        for name, addresses in servers.items():
            self.add(name, addresses)

    def add(self, name: ServerName, addresses: ServerAddresses) -> None:
        """A server that has come."""
        triton, agent = (self._links.channel(one, CHANNEL_OPTIONS) for one in (addresses.triton, addresses.agent))
        self._channels[name] = triton, agent
        self._tritons[name] = service_pb2_grpc.GRPCInferenceServiceStub(triton)
        self._agents[name] = agent_pb2_grpc.NodeAgentStub(agent)
        self._controls[name] = triton_control_pb2_grpc.TritonControlStub(agent)

    async def remove(self, name: ServerName) -> None:
        """One that is gone; what is under way there is cancelled."""
        del self._tritons[name], self._agents[name], self._controls[name]
        for channel in self._channels.pop(name):
            await channel.close(grace=None)

    async def start_engine(self, server: ServerName, order: EngineOrder) -> EngineStarted:
        request = agent_pb2.StartRequest(
            epoch=order.epoch,
            replica=order.replica,
            model=order.model,
            parameters=dict(order.parameters),
            parked=order.parked or "",
        )
        sent_s = self._clock()
        reply = await self._ask_agent(self._agents[server].Start, request, self._load_timeout_s)
        spans = [Span(name=_AGENT_SPAN, start_s=sent_s, end_s=self._clock(), parent=ADMISSION_SPAN)]
        spans += [
            Span(name=s.name, start_s=sent_s + s.start_s, end_s=sent_s + s.end_s, parent=_AGENT_SPAN)
            for s in reply.spans
        ]
        return EngineStarted(
            version=reply.version,
            tier=reply.tier,
            bytes=reply.bytes,
            spans=tuple(spans),
            exactness=exactness_of(reply),
            stub_waited_from_s=sent_s + reply.stub_waited_from_s if reply.HasField("stub_waited_from_s") else None,
        )

    async def load_model(self, server: ServerName, model: str, replica: ReplicaId) -> None:
        try:
            wanted = self._config_of(model, definition_of(replica))
        except SchedulerError as error:  # it went from the repository while it was being started
            raise EffectFailed(error.code, str(error)) from error
        config = json_format.MessageToDict(wanted, preserving_proto_field_name=True)
        config.setdefault("parameters", {})[REPLICA_PARAMETER] = {"string_value": replica}
        await self._load(server, model, json.dumps(config))

    async def release_engine(self, server: ServerName, replica: ReplicaId, epoch: int) -> None:
        request = agent_pb2.ReleaseRequest(epoch=epoch, replica=replica)
        await self._ask_agent(self._agents[server].Release, request, self._release_timeout_s)

    async def park_engine(self, server: ServerName, replica: ReplicaId, epoch: int) -> None:
        request = agent_pb2.ParkRequest(epoch=epoch, replica=replica)
        await self._ask_agent(self._agents[server].Park, request, self._release_timeout_s)

    async def unload_model(self, server: ServerName, model: str) -> None:
        request = triton_control_pb2.UnloadRequest(epoch=self._epoch(), model=model)
        await self._ask_agent(self._controls[server].Unload, request, self._release_timeout_s)

    async def load_foreign(self, server: ServerName, model: str) -> None:
        await self._load(server, model, "")

    async def _load(self, server: ServerName, model: str, config: str) -> None:
        request = triton_control_pb2.LoadRequest(epoch=self._epoch(), model=model, config=config)
        await self._ask_agent(self._controls[server].Load, request, self._load_timeout_s)

    async def end_foreign(self, server: ServerName, model: str) -> None:
        await self.unload_model(server, model)
        try:
            await asyncio.wait_for(self._gone(server, model), self._release_timeout_s)
        except asyncio.TimeoutError as error:
            late = f"Triton still unloads it after {self._release_timeout_s:.0f} s"
            raise EffectFailed("DEADLINE_EXCEEDED", late) from error

    async def _gone(self, server: ServerName, model: str) -> None:
        while model in await self._indexed(server):  # noqa: ASYNC110 - Triton has no event for it
            await asyncio.sleep(_ASK_AGAIN_S)

    async def measure(self, server: ServerName, models: tuple[str, ...]) -> int:
        request = agent_pb2.MeasureRequest(models=models)
        reply = await self._ask_agent(self._agents[server].Measure, request, self._release_timeout_s)
        return int(reply.bytes)

    async def prefetch(self, server: ServerName, checkpoint: str, epoch: int) -> None:
        request = agent_pb2.PrefetchRequest(epoch=epoch, checkpoint=checkpoint)
        await self._ask_agent(self._agents[server].Prefetch, request, self._load_timeout_s)

    async def pin(self, server: ServerName, checkpoint: str, pinned: bool, epoch: int) -> None:
        request = agent_pb2.PinRequest(epoch=epoch, checkpoint=checkpoint, pinned=pinned)
        await self._ask_agent(self._agents[server].Pin, request, self._release_timeout_s)

    async def loaded_models(self, server: ServerName) -> frozenset[str]:
        """The index is of directories: what has left the repository is only among those that are counted."""
        every = service_pb2.ModelStatisticsRequest()
        counted = await self._ask_triton(self._tritons[server].ModelStatistics, every, self._release_timeout_s)
        return await self._indexed(server) | {model.name for model in counted.model_stats}

    async def _indexed(self, server: ServerName) -> frozenset[str]:
        request = service_pb2.RepositoryIndexRequest()
        index = await self._ask_triton(self._tritons[server].RepositoryIndex, request, self._release_timeout_s)
        return frozenset(model.name for model in index.models if model.state not in ("", "UNAVAILABLE"))

    async def members(self, server: ServerName, model: str) -> tuple[str, ...] | None:
        request = service_pb2.ModelConfigRequest(name=model)
        try:
            told = await self._ask_triton(self._tritons[server].ModelConfig, request, self._release_timeout_s)
        except EffectFailed as error:
            if error.code in _NOT_LOADED:
                return None
            raise
        if told.config.backend == SERVED_BACKEND:
            return None
        return tuple(dict.fromkeys(step.model_name for step in told.config.ensemble_scheduling.step))

    async def _ask_agent(self, method: Any, request: Message, timeout_s: float) -> Any:
        await self._permitted(timeout_s)
        return await _call(method(request, timeout=timeout_s, metadata=self._links.agent_metadata))

    async def _permitted(self, timeout_s: float) -> None:
        """Without a lease that holds nothing is begun: an agent may not have heard of the next leader yet."""
        waited_s = 0.0
        while not self._may_act():
            if waited_s >= timeout_s:
                raise EffectFailed("UNAVAILABLE", "this scheduler may not lead any more")
            await asyncio.sleep(_ASK_AGAIN_S)
            waited_s += _ASK_AGAIN_S

    async def _ask_triton(self, method: Any, request: Message, timeout_s: float) -> Any:
        return await _call(method(request, timeout=timeout_s, metadata=self._links.triton_metadata))

    async def close(self) -> None:
        for channels in self._channels.values():
            for channel in channels:
                await channel.close(grace=None)


async def _call(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        words = error.details() or error.code().name
        if tells_of_link(words):
            logger.warning("effect_link_broke code=%s words=%r", error.code().name, words)
            words = BROKEN_LINK
        raise EffectFailed(error.code().name, words) from error
