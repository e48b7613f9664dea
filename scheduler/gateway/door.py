"""How much one address may have open, so that one stranger does not take everything there is.

HTTP connections are counted from the moment they are accepted to their end, TLS' handshake included. gRPC tells nobody
of its connections, so there it is calls. An address is a host's; of IPv6 a network of 64 bits, which one host has.
"""

from __future__ import annotations

import logging
import socket
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import unquote

import grpc

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
RpcHandler = Any  # grpc.RpcMethodHandler, which grpc-stubs gives no fields

_HOST_BITS = 64  # of an IPv6 address
_MOST_REMEMBERED = 4096


@lru_cache(_MOST_REMEMBERED)
def network_of(host: str) -> str:
    """Under which an address is counted."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:  # no address of IP's
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> _HOST_BITS << _HOST_BITS)}/64"


@lru_cache(_MOST_REMEMBERED)
def network_of_peer(peer: str) -> str:
    """As gRPC names one: ipv4:192.0.2.1:4567, ipv6:%5B2001:db8::1%5D:4567."""
    kind, _, rest = unquote(peer).partition(":")
    return network_of(rest.rpartition(":")[0].strip("[]")) if kind in ("ipv4", "ipv6") else peer


class Door:
    """Counts what is open, by network. `most` of all, None for no bound; `most_each` of one network."""

    def __init__(self, what: str, *, most: int | None, most_each: int) -> None:
        self._what = what
        self._most = most
        self._most_each = most_each
        self._open: Counter[str] = Counter()
        self._count = 0
        self._told: set[str] = set()  # refusals of these are in the log; "" stands for all

    def enter(self, network: str) -> bool:
        """Whether there is room for one more; then `leave` ends it."""
        if self._most is not None and self._count >= self._most:
            self._tell("", self._count)
            return False
        if self._open[network] >= self._most_each:
            self._tell(network, self._open[network])
            return False
        self._open[network] += 1
        self._count += 1
        return True

    def leave(self, network: str) -> None:
        self._count -= 1
        self._open[network] -= 1
        if not self._open[network]:
            del self._open[network]
        self._told -= {network, ""}

    def _tell(self, network: str, count: int) -> None:
        """Once, until there is room again."""
        if network not in self._told:
            self._told.add(network)
            log.warning("%s_refused address=%s open=%d", self._what, network or "any", count)


class DoorSocket(socket.socket):
    """Listens, and closes connections that may not be at once. asyncio takes it for one of its own."""

    door: Door

    def accept(self) -> tuple[socket.socket, Any]:
        """Raises ConnectionAbortedError for one that was closed, which asyncio passes over."""
        accepted, address = super().accept()
        network = network_of(address[0])
        if not self.door.enter(network):
            accepted.close()
            raise ConnectionAbortedError
        return _Connection(accepted, self.door, network), address


class _Connection(socket.socket):
    """Tells the door when it is closed, or forgotten."""

    def __init__(self, accepted: socket.socket, door: Door, network: str) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self._end = weakref.finalize(self, door.leave, network)
        self._end.atexit = False

    def close(self) -> None:
        super().close()
        self._end()


def listening_sockets(host: str, port: int, door: Door) -> list[DoorSocket]:
    """Bound, for every address that the host's name has. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listening: list[DoorSocket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            bound = DoorSocket(family, kind, protocol)
            bound.door = door
            listening.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
    except OSError:
        for bound in listening:
            bound.close()
        raise
    return listening


class CallsByAddress(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # it takes none at run time
    """Refuses calls of an address that has too many. What is behind it serves streams only."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[RpcHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> RpcHandler:
        handler = await continuation(handler_call_details)
        return None if handler is None else handler._replace(stream_stream=self._counted(handler.stream_stream))

    def _counted(self, serve: Callable[[Any, Context], Awaitable[None]]) -> Callable[[Any, Context], Awaitable[None]]:
        async def serve_counted(requests: Any, context: Context) -> None:
            network = network_of_peer(context.peer())
            if not self._door.enter(network):
                words = "this address has too many calls open at the same time"
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, words)
            try:
                await serve(requests, context)
            finally:
                self._door.leave(network)

        return serve_counted
