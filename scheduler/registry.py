"""Where agents announce their servers, which join the cluster, and leave it when they are gone.

One that has missed its beats is gone once neither its agent nor its Triton answers any more: streams go on as long as
they can. It listens as long as this scheduler leads; agents know all schedulers and announce to each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from serverless_triton.backend import agent_pb2, agent_pb2_grpc
from serverless_triton.backend.node_secret import NodeSecret
from serverless_triton.backend.node_tls import NodeTLS
from serverless_triton.scheduler.admission import ServerName
from serverless_triton.scheduler.cluster import ServerState
from serverless_triton.scheduler.control_loop import ControlLoop
from serverless_triton.scheduler.gateway.settings import host_and_port
from serverless_triton.scheduler.registration import AnnouncementRefused, Members, ServerConfig, Unannounced
from serverless_triton.scheduler.server_watch import ServerWatch
from serverless_triton.scheduler.triton_effects import ServerAddresses, TritonEffects

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True, kw_only=True)
class Comings:
    """Servers join the control loop's cluster and leave it, each with a watch of its own."""

    loop: ControlLoop
    effects: TritonEffects
    watch_of: Callable[[ServerState, str], ServerWatch]
    _watches: dict[ServerName, asyncio.Task[None]] = field(default_factory=dict)

    def join(self, server: ServerConfig) -> None:
        logger.info("server_joined server=%s triton=%s agent=%s", server.name, server.triton, server.agent)
        name = ServerName(server.name)
        state = ServerState(name=name, grpc_address=server.triton)
        self.effects.add(name, ServerAddresses(triton=server.triton, agent=server.agent))
        self.loop.cluster.servers[name] = state
        self.loop.cluster.changed(server=name)
        self._watches[name] = asyncio.get_running_loop().create_task(self.watch_of(state, server.agent).run())

    def answers(self, name: ServerName) -> bool:
        """Whether anything of it is there."""
        state = self.loop.cluster.servers[name]
        return state.agent_up or state.triton_up

    async def leave(self, name: ServerName) -> None:
        """Its replicas are lost, whoever waited for one goes elsewhere."""
        logger.warning("server_gone server=%s", name)
        await _ended(self._watches.pop(name))
        for replica in self.loop.cluster.on_server(name):
            self.loop.news.lose(replica, f"server {name} is gone")
        del self.loop.cluster.servers[name]
        self.loop.cluster.changed(server=name)
        await self.effects.remove(name)
        self.loop.dispatch()

    def check(self) -> None:
        """A watch never ends by itself: what broke it is raised here."""
        for task in self._watches.values():
            if task.done():
                task.result()

    async def close(self) -> None:
        for task in self._watches.values():
            await _ended(task)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@dataclass(slots=True, kw_only=True)
class Registry(agent_pb2_grpc.RegistryServicer):
    """Runs until cancelled. Without a `secret` whoever reaches it may announce a server."""

    members: Members
    comings: Comings
    clock: Callable[[], float]
    secret: NodeSecret | None = None
    tls: NodeTLS | None = None
    _refused: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Raises OSError where its address is taken, CertificateUnusable."""
        server = await self._listen()
        try:
            while True:
                await asyncio.sleep(self.members.settings.heartbeat_s)
                await self.sweep()
        finally:
            await server.stop(grace=None)
            await self.comings.close()

    async def _listen(self) -> grpc.aio.Server:
        settings = self.members.settings
        address = host_and_port(settings.host, settings.port)
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        agent_pb2_grpc.add_RegistryServicer_to_server(self, server)
        try:
            if self.tls is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, self.tls.server_credentials())
        except RuntimeError as error:
            raise OSError(f"registration's address {address} is taken; choose another") from error
        await server.start()
        logger.info("registry_ready address=%s", address)
        return server

    async def Announce(self, request: agent_pb2.Announcement, context: Context) -> agent_pb2.AnnouncementReply:
        server = ServerConfig(name=request.node, triton=request.triton, agent=request.agent)
        try:
            self._hear(server, context)
        except AnnouncementRefused as error:
            self._tell(server, error)
            await context.abort(grpc.StatusCode[error.code], str(error))
        return agent_pb2.AnnouncementReply(heartbeat_s=self.members.settings.heartbeat_s)

    def _hear(self, server: ServerConfig, context: Context) -> None:
        if self.secret is not None and not self.secret.is_announced_in(context.invocation_metadata()):
            raise Unannounced("the announcement does not show the cluster's secret; give the node --secret-file")
        if self.members.hear(server, self.clock()):
            self.comings.join(server)

    def _tell(self, server: ServerConfig, error: AnnouncementRefused) -> None:
        """Once for each reason: it is said again with every beat."""
        if str(error) not in self._refused and len(self._refused) < self.members.settings.max_servers:
            self._refused.add(str(error))
            logger.warning("announcement_refused server=%r reason=%r", server.name[:64], str(error))

    async def sweep(self) -> None:
        """Those that are gone leave."""
        self.comings.check()
        gone = [name for name in self.members.silent(self.clock()) if not self.comings.answers(name)]
        self.members.drop(gone)
        for name in gone:
            await self.comings.leave(name)
