"""A gateway's connection to the scheduler that leads, where that is another process: admission.proto's other end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc

from serverless_triton.scheduler import admission_pb2 as pb
from serverless_triton.scheduler import admission_pb2_grpc
from serverless_triton.scheduler.admission import Assignment, Outlook, ReplicaId, StreamId
from serverless_triton.scheduler.admission_wire import pack_caller, read_assignment, read_outlook, read_trouble
from serverless_triton.scheduler.desk import Place
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.identity import ANONYMOUS, Caller
from serverless_triton.scheduler.node_links import NodeLinks
from serverless_triton.scheduler.server_watch import CHANNEL_OPTIONS

logger = logging.getLogger(__name__)

RETRY_S = 0.1
CALL_S = 5.0  # beyond what a call itself may wait for


class LeaderAway(SchedulerError):
    """The leader does not answer, or leads no more; the same is to be asked of whoever does."""

    code = "UNAVAILABLE"


class LeaderClient:
    """`run` until cancelled, then `close`. Implements what of `Admission` must be asked of the leader."""

    def __init__(
        self,
        gateway: str,
        address: str,
        links: NodeLinks,
        *,
        held: Callable[[], Iterable[Place]],
        on_lost: Callable[[Place, str], None],
    ) -> None:
        self.address = address
        self.picture = pb.Picture()
        self._gateway = gateway
        self._held = held
        self._on_lost = on_lost
        self._metadata = links.scheduler_metadata
        self._channel = links.channel(address, (*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", 64 << 20)))
        self._leader: Any = admission_pb2_grpc.LeaderStub(self._channel)
        self._outbox: asyncio.Queue[pb.GatewayNews] | None = None
        self._attending = asyncio.Event()

    async def run(self) -> None:
        while True:
            try:
                await self._attend()
            except grpc.aio.AioRpcError as error:
                logger.debug("leader_away address=%s code=%s words=%r", self.address, error.code(), error.details())
            self._outbox = None
            self._attending.clear()
            await asyncio.sleep(RETRY_S)

    async def _attend(self) -> None:
        self._outbox = asyncio.Queue()
        held = [pb.Place(stream=stream, replica=replica) for stream, replica in self._held()]
        self._outbox.put_nowait(pb.GatewayNews(hello=pb.Hello(gateway=self._gateway, held=held)))
        call = self._leader.Attend(_all_of(self._outbox), metadata=self._metadata)
        try:
            async for news in call:
                self._attending.set()
                if news.HasField("picture"):
                    self.picture = news.picture
                else:
                    self._on_lost(
                        (StreamId(news.lost.place.stream), ReplicaId(news.lost.place.replica)), news.lost.reason
                    )
        finally:
            call.cancel()

    def tell(self, news: pb.GatewayNews) -> None:
        """In order. What cannot be told now is not needed: the next `hello` says what is held."""
        if self._outbox is not None:
            self._outbox.put_nowait(news)

    async def admit(
        self,
        stream: StreamId,
        model: str,
        *,
        timeout_s: float,
        avoid: frozenset[ReplicaId] = frozenset(),
        caller: Caller = ANONYMOUS,
        priority: int = 0,
        version: str = "",
    ) -> Assignment:
        """Raises LeaderAway, what the leader refuses it with, and TimeoutError where it is not there in time."""
        request = pb.AdmitRequest(
            gateway=self._gateway,
            stream=stream,
            model=model,
            version=version,
            timeout_s=timeout_s,
            avoid=sorted(avoid),
            caller=pack_caller(caller),
            priority=priority,
        )
        await asyncio.wait_for(self._attending.wait(), timeout_s)
        sent_s = time.monotonic()
        try:
            reply = await self._ask(self._leader.Admit, request, timeout_s)
            _raise(reply)
        except BaseException:
            kept = [replica for held, replica in self._held() if held == stream]
            self.tell(pb.GatewayNews(given_up=pb.GivenUp(stream=stream, kept=kept)))
            raise
        return read_assignment(reply.assignment, sent_s, asyncio.get_running_loop().create_future())

    async def outlook(self, model: str, *, caller: Caller, priority: int) -> Outlook:
        request = pb.OutlookRequest(model=model, caller=pack_caller(caller), priority=priority)
        reply = await self._ask(self._leader.Outlook, request)
        _raise(reply)
        return read_outlook(reply.outlook)

    async def warm(self, model: str, *, timeout_s: float) -> None:
        _raise(await self._ask(self._leader.Warm, pb.ModelRequest(model=model, timeout_s=timeout_s), timeout_s))

    async def release(self, model: str, *, timeout_s: float) -> None:
        _raise(await self._ask(self._leader.Release, pb.ModelRequest(model=model, timeout_s=timeout_s), timeout_s))

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((await self._ask(self._leader.Status, pb.StatusRequest())).status)
        return status

    async def _ask(self, method: Any, request: Any, waits_s: float = 0.0) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=waits_s + CALL_S)
        except grpc.aio.AioRpcError as error:
            logger.info("leader_away address=%s code=%s words=%r", self.address, error.code(), error.details())
            raise LeaderAway("the scheduler that leads does not answer") from error

    async def close(self) -> None:
        await self._channel.close(grace=None)


def _raise(reply: Any) -> None:
    if reply.HasField("trouble"):
        raise read_trouble(reply.trouble)


async def _all_of(outbox: asyncio.Queue[pb.GatewayNews]) -> AsyncIterator[pb.GatewayNews]:
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            yield await outbox.get()
