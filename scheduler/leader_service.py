"""Where gateways of other schedulers ask this one, as long as it leads: admission.proto over its reign's `Desk`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from serverless_triton.backend.node_secret import NodeSecret
from serverless_triton.backend.node_tls import NodeTLS
from serverless_triton.scheduler import admission_pb2 as pb
from serverless_triton.scheduler import admission_pb2_grpc
from serverless_triton.scheduler.admission import ReplicaId, StreamId
from serverless_triton.scheduler.admission_wire import pack_assignment, pack_outlook, pack_trouble, read_caller
from serverless_triton.scheduler.desk import Desk, Place
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.status import cluster_status
from serverless_triton.scheduler.view import Phase

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 5_000),  # a gateway whose machine is gone closes nothing
    ("grpc.keepalive_timeout_ms", 3_000),
)
LOOK_S = 0.1  # at most so often a gateway hears how things are


@dataclass(slots=True)
class LeaderService(admission_pb2_grpc.LeaderServicer):
    """`desk` is None as long as another scheduler leads."""

    desk: Desk | None = None
    secret: NodeSecret | None = None  # None: whoever reaches it may ask

    async def listen(self, address: str, tls: NodeTLS | None) -> grpc.aio.Server:
        """Raises OSError where the address is taken, CertificateUnusable."""
        server = grpc.aio.server(options=_OPTIONS)
        admission_pb2_grpc.add_LeaderServicer_to_server(self, server)
        try:
            if tls is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, tls.server_credentials())
        except RuntimeError as error:
            raise OSError(f"state.address {address} is taken, or not of this machine; choose another") from error
        await server.start()
        return server

    async def Attend(self, request_iterator: AsyncIterator[pb.GatewayNews], context: Context) -> AsyncIterator[Any]:
        desk = await self._leading(context)
        hello = (await anext(request_iterator)).hello
        news: asyncio.Queue[pb.LeaderNews] = asyncio.Queue()

        def on_lost(place: Place, reason: str) -> None:
            news.put_nowait(
                pb.LeaderNews(lost=pb.Lost(place=pb.Place(stream=place[0], replica=place[1]), reason=reason))
            )

        visit = desk.come(hello.gateway, map(_place, hello.held), on_lost)
        hearing = asyncio.ensure_future(_hear(desk, hello.gateway, request_iterator))
        try:
            shown = None
            while self.desk is desk and not hearing.done():
                if (picture := _picture(desk)) != shown:
                    shown = picture
                    yield pb.LeaderNews(picture=picture)
                with suppress(asyncio.TimeoutError):
                    yield await asyncio.wait_for(news.get(), LOOK_S)
        finally:
            hearing.cancel()
            desk.leave(hello.gateway, visit)

    async def Admit(self, request: pb.AdmitRequest, context: Context) -> pb.AdmitReply:
        desk = await self._leading(context)
        received_s = desk.loop.clock()
        try:
            assignment = await desk.loop.admit(
                StreamId(request.stream),
                request.model,
                timeout_s=request.timeout_s,
                avoid=frozenset(ReplicaId(one) for one in request.avoid),
                caller=read_caller(request.caller),
                priority=request.priority,
                version=request.version,
            )
        except SchedulerError as error:
            await self._still_leading(desk, context)
            return pb.AdmitReply(trouble=pack_trouble(error))
        if not desk.give(request.gateway, assignment):
            desk.loop.finish(assignment)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "attend first")
        return pb.AdmitReply(assignment=pack_assignment(assignment, received_s))

    async def Outlook(self, request: pb.OutlookRequest, context: Context) -> pb.OutlookReply:
        desk = await self._leading(context)
        try:
            caller = read_caller(request.caller)
            outlook = await desk.loop.outlook(request.model, caller=caller, priority=request.priority)
        except SchedulerError as error:
            return pb.OutlookReply(trouble=pack_trouble(error))
        return pb.OutlookReply(outlook=pack_outlook(outlook))

    async def Warm(self, request: pb.ModelRequest, context: Context) -> pb.ModelReply:
        desk = await self._leading(context)
        return await self._done(desk, desk.loop.warm(request.model, timeout_s=request.timeout_s), context)

    async def Release(self, request: pb.ModelRequest, context: Context) -> pb.ModelReply:
        desk = await self._leading(context)
        return await self._done(desk, desk.loop.release(request.model, timeout_s=request.timeout_s), context)

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        desk = await self._leading(context)
        return pb.StatusReply(status=json.dumps(cluster_status(desk.loop)))

    async def _done(self, desk: Desk, act: Awaitable[None], context: Context) -> pb.ModelReply:
        try:
            await act
        except SchedulerError as error:
            await self._still_leading(desk, context)
            return pb.ModelReply(trouble=pack_trouble(error))
        return pb.ModelReply()

    async def _leading(self, context: Context) -> Desk:
        if self.secret is not None and not self.secret.is_schedulers(context.invocation_metadata()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the call does not show the cluster's secret")
        if self.desk is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another scheduler leads")
        assert self.desk is not None
        return self.desk

    async def _still_leading(self, desk: Desk, context: Context) -> None:
        """What a reign says as it ends is no answer."""
        if self.desk is not desk:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another scheduler leads")


async def _hear(desk: Desk, gateway: str, told: AsyncIterator[pb.GatewayNews]) -> None:
    handlers: dict[str, Callable[[Any], None]] = {
        "finished": lambda one: desk.finish(gateway, _place(one.place), broken=one.broken),
        "given_up": lambda one: desk.give_up(
            gateway, StreamId(one.stream), frozenset(ReplicaId(name) for name in one.kept)
        ),
        "progress": lambda one: desk.loop.progress(
            StreamId(one.stream), input_tokens=one.input_tokens, output_tokens=one.output_tokens
        ),
    }
    async for news in told:
        kind = news.WhichOneof("news")
        if kind in handlers:
            handlers[kind](getattr(news, kind))


def _place(place: pb.Place) -> Place:
    return StreamId(place.stream), ReplicaId(place.replica)


def _picture(desk: Desk) -> pb.Picture:
    loop = desk.loop
    ready = {(r.model.name, r.model.version) for r in loop.cluster.replicas.values() if r.phase is Phase.READY}
    return pb.Picture(
        running=[pb.RunningModel(model=model, version=version) for model, version in sorted(ready)],
        failed=loop.failed_definitions(),
        can_serve=any(server.takes_starts for server in loop.cluster.servers.values()),
    )
