"""The node's Triton as a scheduler changes it: by way of the agent, which knows who leads (decision 7).

Triton itself would take a load or an unload from whoever comes, also from a scheduler that was stopped for a while and
leads no more. Between agent and Triton nothing of a scheduler stands, so what is admitted here happens at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serverless_triton.backend import triton_control_pb2, triton_control_pb2_grpc
from serverless_triton.backend.agent import NodeAgent
from serverless_triton.backend.epochs import StaleEpoch
from serverless_triton.backend.node_secret import Metadata, NodeSecret
from serverless_triton.backend.node_tls import NodeTLS

Context = grpc.aio.ServicerContext[Any, Any]

_RECONNECTS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonLink:
    """How the agent reaches its Triton: host:port of its gRPC, and what it wants to be shown."""

    address: str
    metadata: Metadata = field(default=(), repr=False)
    tls: NodeTLS | None = None

    @classmethod
    def of(cls, address: str, secret: NodeSecret | None, tls: NodeTLS | None) -> TritonLink:
        return cls(address=address, metadata=() if secret is None else secret.triton_metadata, tls=tls)

    def channel(self) -> grpc.aio.Channel:
        """To be made in a running event loop. Raises CertificateUnusable."""
        options: Sequence[tuple[str, Any]] = _RECONNECTS
        if self.tls is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        # Triton has the node's own certificate, which is for the name that schedulers know it by.
        named = (*options, ("grpc.ssl_target_name_override", self.tls.own_name()))
        return grpc.aio.secure_channel(self.address, self.tls.channel_credentials(), options=named)


class TritonControlService(triton_control_pb2_grpc.TritonControlServicer):
    """Made in a running event loop. Without a link it only hears who leads."""

    def __init__(self, agent: NodeAgent, link: TritonLink | None) -> None:
        self._agent = agent
        self._metadata = () if link is None else link.metadata
        self._triton: Any = None if link is None else service_pb2_grpc.GRPCInferenceServiceStub(link.channel())

    async def Lead(self, request: triton_control_pb2.LeadRequest, context: Context) -> triton_control_pb2.LeadReply:
        await self._check_permit(request.epoch, context)
        return triton_control_pb2.LeadReply()

    async def Load(self, request: triton_control_pb2.LoadRequest, context: Context) -> triton_control_pb2.LoadReply:
        await self._check_permit(request.epoch, context)
        wanted = service_pb2.RepositoryModelLoadRequest(model_name=request.model)
        if request.config:
            wanted.parameters["config"].string_param = request.config
        await self._ask("RepositoryModelLoad", wanted, context)
        return triton_control_pb2.LoadReply()

    async def Unload(
        self, request: triton_control_pb2.UnloadRequest, context: Context
    ) -> triton_control_pb2.UnloadReply:
        await self._check_permit(request.epoch, context)
        await self._ask(
            "RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=request.model), context
        )
        return triton_control_pb2.UnloadReply()

    async def _check_permit(self, epoch: int, context: Context) -> None:
        try:
            self._agent.check_epoch(epoch)
        except StaleEpoch as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def _ask(self, method: str, request: Any, context: Context) -> None:
        """For as long as the caller waits; Triton's error is the caller's."""
        if self._triton is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this agent was not told where its Triton is")
        try:
            await getattr(self._triton, method)(request, timeout=context.time_remaining(), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or error.code().name)
