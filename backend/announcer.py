"""A node's agent tells schedulers that its server is there, and again after every heartbeat that they ask for.

A scheduler that does not answer, or refuses, is asked again: another one may lead by then, or a name be free.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from serverless_triton.backend import agent_pb2, agent_pb2_grpc
from serverless_triton.backend.node_secret import Metadata

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 5.0
ASK_AGAIN_S = 1.0
LONGEST_HEARTBEAT_S = 60.0  # whatever a scheduler says
# gRPC would wait up to two minutes for one that is back within a second.
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(slots=True, kw_only=True)
class Announcer:
    """Runs until cancelled. `schedulers` are host:port of their registries; those that do not lead do not listen."""

    server: agent_pb2.Announcement
    schedulers: Sequence[str]
    metadata: Metadata = field(default=(), repr=False)
    credentials: grpc.ChannelCredentials | None = None
    _said: dict[str, str] = field(default_factory=dict)  # by scheduler, what the log has of it

    async def run(self) -> None:
        await asyncio.gather(*(self._keep_announcing(scheduler) for scheduler in self.schedulers))

    async def _keep_announcing(self, scheduler: str) -> None:
        async with self._channel(scheduler) as channel:
            registry = agent_pb2_grpc.RegistryStub(channel)
            while True:
                pause_s = await self._announce(registry, scheduler)
                await asyncio.sleep(pause_s)

    def _channel(self, scheduler: str) -> grpc.aio.Channel:
        if self.credentials is None:
            return grpc.aio.insecure_channel(scheduler, options=_CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(scheduler, self.credentials, options=_CHANNEL_OPTIONS)

    async def _announce(self, registry: agent_pb2_grpc.RegistryStub, scheduler: str) -> float:
        """Seconds until it is to be said again."""
        try:
            reply = await registry.Announce(self.server, timeout=ANSWER_TIMEOUT_S, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            self._say(scheduler, f"{error.code().name}: {error.details()}")
            return ASK_AGAIN_S
        self._say(scheduler, "")
        return min(max(float(reply.heartbeat_s), 0.05), LONGEST_HEARTBEAT_S)

    def _say(self, scheduler: str, trouble: str) -> None:
        """What is new, not what is said every second."""
        if self._said.get(scheduler) == trouble:
            return
        self._said[scheduler] = trouble
        if trouble:
            logger.warning("announcement_failed scheduler=%s reason=%r", scheduler, trouble)
        else:
            logger.info("announced scheduler=%s node=%s", scheduler, self.server.node)
