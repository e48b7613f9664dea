"""The real effects: a node agent's gRPC for engines, Triton's model-control API for stubs."""

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

from serverless_triton.backend import agent_pb2, agent_pb2_grpc
from serverless_triton.backend.messages import REPLICA_PARAMETER
from serverless_triton.scheduler.admission import ADMISSION_SPAN, ReplicaId, ServerName, Span
from serverless_triton.scheduler.definitions import definition_of
from serverless_triton.scheduler.effects import EffectFailed, EngineOrder, EngineStarted
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.node_links import BROKEN_LINK, NodeLinks, tells_of_link
from serverless_triton.scheduler.server_watch import CHANNEL_OPTIONS, exactness_of

logger = logging.getLogger(__name__)

_AGENT_SPAN = "agent.start"
_ASK_AGAIN_S = 0.05  # whether a model is gone: Triton tells nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddresses:
    """host:port of a server's Triton (gRPC) and of its node's agent."""

    triton: str
    agent: str


class TritonEffects:
    """Implements `Effects` with one channel per server and service."""

    def __init__(
        self,
        servers: Mapping[ServerName, ServerAddresses],
        config_of: Callable[[str, str], model_config_pb2.ModelConfig],
        clock: Callable[[], float],
        *,
        links: NodeLinks,
        load_timeout_s: float,
        release_timeout_s: float,
    ) -> None:
        self._config_of = config_of
        self._clock = clock
        self._links = links
        self._load_timeout_s = load_timeout_s
        self._release_timeout_s = release_timeout_s
        self._channels = {
            address: links.channel(address, CHANNEL_OPTIONS)
            for addresses in servers.values()
            for address in (addresses.triton, addresses.agent)
        }
        self._tritons: dict[ServerName, Any] = {}
        self._agents: dict[ServerName, Any] = {}
        for name, addresses in servers.items():
            self._tritons[name] = service_pb2_grpc.GRPCInferenceServiceStub(self._channels[addresses.triton])
            self._agents[name] = agent_pb2_grpc.NodeAgentStub(self._channels[addresses.agent])

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
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        request.parameters["config"].string_param = json.dumps(config)
        await self._ask_triton(self._tritons[server].RepositoryModelLoad, request, self._load_timeout_s)

    async def release_engine(self, server: ServerName, replica: ReplicaId, epoch: int) -> None:
        request = agent_pb2.ReleaseRequest(epoch=epoch, replica=replica)
        await self._ask_agent(self._agents[server].Release, request, self._release_timeout_s)

    async def park_engine(self, server: ServerName, replica: ReplicaId, epoch: int) -> None:
        request = agent_pb2.ParkRequest(epoch=epoch, replica=replica)
        await self._ask_agent(self._agents[server].Park, request, self._release_timeout_s)

    async def unload_model(self, server: ServerName, model: str) -> None:
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        await self._ask_triton(self._tritons[server].RepositoryModelUnload, request, self._release_timeout_s)

    async def load_foreign(self, server: ServerName, model: str) -> None:
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        await self._ask_triton(self._tritons[server].RepositoryModelLoad, request, self._load_timeout_s)

    async def end_foreign(self, server: ServerName, model: str) -> None:
        await self.unload_model(server, model)
        try:
            await asyncio.wait_for(self._gone(server, model), self._release_timeout_s)
        except asyncio.TimeoutError as error:
            late = f"Triton still unloads it after {self._release_timeout_s:.0f} s"
            raise EffectFailed("DEADLINE_EXCEEDED", late) from error

    async def _gone(self, server: ServerName, model: str) -> None:
        while model in await self.loaded_models(server):  # noqa: ASYNC110 - Triton has no event for it
            await asyncio.sleep(_ASK_AGAIN_S)

    async def measure(self, server: ServerName, models: tuple[str, ...]) -> int:
        request = agent_pb2.MeasureRequest(models=models)
        reply = await self._ask_agent(self._agents[server].Measure, request, self._release_timeout_s)
        return int(reply.bytes)

    async def loaded_models(self, server: ServerName) -> frozenset[str]:
        request = service_pb2.RepositoryIndexRequest()
        index = await self._ask_triton(self._tritons[server].RepositoryIndex, request, self._release_timeout_s)
        return frozenset(model.name for model in index.models if model.state not in ("", "UNAVAILABLE"))

    async def _ask_agent(self, method: Any, request: Message, timeout_s: float) -> Any:
        return await _call(method(request, timeout=timeout_s, metadata=self._links.agent_metadata))

    async def _ask_triton(self, method: Any, request: Message, timeout_s: float) -> Any:
        return await _call(method(request, timeout=timeout_s, metadata=self._links.triton_metadata))

    async def close(self) -> None:
        for channel in self._channels.values():
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
