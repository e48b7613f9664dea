"""The listening side of an aiohttp application, and how long and how often a client may hold a connection open."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl

from aiohttp import web

from serverless_triton.scheduler.gateway.settings import ConnectionLimits

log = logging.getLogger(__name__)


class HttpSite:
    """`port` is the one it got. A handler whose client goes away is cancelled."""

    def __init__(
        self,
        app: web.Application,
        host: str,
        port: int,
        limits: ConnectionLimits,
        *,
        tls: ssl.SSLContext | None = None,
        drain_s: float = 0.0,
    ) -> None:
        # aiohttp's keep-alive timer runs from the moment of the connection until a request's headers are complete.
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=drain_s,
            keepalive_timeout=limits.idle_timeout_s,
        )
        self._host = host
        self._limits = limits
        self._tls = tls
        self._full = False
        self._listener: asyncio.Server | None = None
        self.port = port

    async def start(self) -> None:
        """Raises OSError where the address is taken."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        handshake_s = None if self._tls is None else self._limits.handshake_timeout_s
        self._listener = await loop.create_server(
            self._connection, self._host, self.port, ssl=self._tls, ssl_handshake_timeout=handshake_s
        )
        stalled_ms = int(self._limits.stalled_timeout_s * 1000)
        for listening in self._listener.sockets:  # connections inherit it
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stalled_ms)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()

    def _connection(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        assert server is not None
        full = len(server.connections) >= self._limits.max_http_connections
        if full and not self._full:
            log.warning("connections_refused port=%d open=%d", self.port, self._limits.max_http_connections)
        self._full = full
        return _Refused() if full else server()


class _Refused(asyncio.Protocol):
    """A connection more than there may be."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
