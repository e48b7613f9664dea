"""How an etcd cluster is reached: a channel for each member, the one that answered last asked first.

aetcd's client knows one member and no TLS, so only its generated messages and stubs are used, over channels of ours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from aetcd import rpc

from serverless_triton.scheduler.state.protocol import StateUnavailable, StateUnusable
from serverless_triton.scheduler.state.settings import EtcdTLS

logger = logging.getLogger(__name__)

ASK_TIMEOUT_S = 2.0
# A member without a leader says so instead of waiting, and ends its watches.
METADATA = (("hasleader", "true"),)
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 10_000),  # etcd closes connections that are asked more often than every 5 s
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.max_receive_message_length", 64 << 20),
)
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
_AWAY = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    )
)


class EtcdRefused(StateUnavailable):
    """etcd answered, and not with what was asked for."""

    def __init__(self, status: grpc.StatusCode, words: str) -> None:
        super().__init__(f"etcd refuses: {words} ({status.name})")
        self.status = status


@dataclass(frozen=True, slots=True)
class Member:
    address: str
    channel: grpc.aio.Channel
    kv: Any
    lease: Any
    watch: Any


class EtcdLink:
    """Made in a running event loop. Raises StateUnusable for files of TLS that cannot be read."""

    def __init__(self, endpoints: Sequence[str], tls: EtcdTLS | None = None) -> None:
        credentials = None if tls is None else _credentials(tls)
        self._members = [_member(address, credentials) for address in endpoints]
        self._current = 0

    @property
    def member(self) -> Member:
        """Who is asked first now."""
        return self._members[self._current]

    def pass_over(self, member: Member) -> None:
        """It did not answer: the next one is asked first from now on."""
        if member is self.member:
            self._current = (self._current + 1) % len(self._members)

    async def read(self, request: Any) -> Any:
        """A range, of whichever member answers. Raises StateUnavailable."""
        return await self._ask("kv", "Range", request, may_repeat=True)

    async def write(self, request: Any) -> Any:
        """A transaction. Raises StateUnavailable, and then nobody knows whether it happened."""
        return await self._ask("kv", "Txn", request, may_repeat=False)

    async def lease(self, method: str, request: Any) -> Any:
        """Raises StateUnavailable."""
        return await self._ask("lease", method, request, may_repeat=True)

    async def keep_alive(self, lease: int, timeout_s: float) -> int:
        """Seconds that the lease lives from the moment it was renewed; 0: it is gone. Raises StateUnavailable."""
        member = self.member
        call = member.lease.LeaseKeepAlive(metadata=METADATA, timeout=timeout_s)
        try:
            await call.write(rpc.LeaseKeepAliveRequest(ID=lease))
            reply = await call.read()
        except grpc.aio.AioRpcError as error:
            raise self._heard(member, error) from error
        finally:
            call.cancel()
        if reply is _EOF:
            self.pass_over(member)
            raise StateUnavailable("etcd ended the connection")
        return max(0, int(reply.TTL))

    async def events(self, wanted: rpc.WatchCreateRequest) -> AsyncGenerator[Any, None]:
        """Until the watch breaks, also where its first revision is compacted away. Raises StateUnavailable."""
        member = self.member
        call = member.watch.Watch(metadata=METADATA)
        try:
            await call.write(rpc.WatchRequest(create_request=wanted))
            while (told := await call.read()) is not _EOF and not told.canceled:
                for event in told.events:
                    yield event
        except grpc.aio.AioRpcError as error:
            self.pass_over(member)
            raise StateUnavailable(f"etcd's watch broke: {error.details()}") from error
        finally:
            call.cancel()

    async def close(self) -> None:
        for member in self._members:
            await member.channel.close(grace=None)

    async def _ask(self, service: str, method: str, request: Any, *, may_repeat: bool) -> Any:
        ends_s = time.monotonic() + ASK_TIMEOUT_S
        for left in range(len(self._members), 0, -1):
            member, left_s = self.member, max(0.05, ends_s - time.monotonic())
            asking = getattr(getattr(member, service), method)
            try:
                # A member that is stopped answers nothing: the others get their share of the time.
                return await asking(request, timeout=left_s / left if may_repeat else left_s, metadata=METADATA)
            except grpc.aio.AioRpcError as error:
                heard = self._heard(member, error)
                if left == 1 or isinstance(heard, EtcdRefused) or not (may_repeat or _was_not_sent(error)):
                    raise heard from error
        raise AssertionError("there is a member")

    def _heard(self, member: Member, error: grpc.aio.AioRpcError) -> StateUnavailable:
        words = error.details() or error.code().name
        if error.code() not in _AWAY:
            return EtcdRefused(error.code(), words)
        self.pass_over(member)
        return StateUnavailable(f"etcd at {member.address} does not answer: {words}")


def _was_not_sent(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE and "failed to connect" in (error.details() or "")


def _member(address: str, credentials: grpc.ChannelCredentials | None) -> Member:
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
    return Member(address, channel, rpc.KVStub(channel), rpc.LeaseStub(channel), rpc.WatchStub(channel))


def _credentials(tls: EtcdTLS) -> grpc.ChannelCredentials:
    try:
        ca = tls.ca_file.read_bytes()
        key = None if tls.key_file is None else tls.key_file.read_bytes()
        certificate = None if tls.certificate_file is None else tls.certificate_file.read_bytes()
    except OSError as error:
        raise StateUnusable(f"{error.filename}: cannot be read: {error.strerror}; etcd needs it for TLS") from error
    return grpc.ssl_channel_credentials(ca, key, certificate)
