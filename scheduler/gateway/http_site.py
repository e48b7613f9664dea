"""The listening side of an aiohttp application, and how long and how often a client may hold a connection open."""

from __future__ import annotations

import asyncio
import socket
import ssl

from aiohttp import web

from serverless_triton.scheduler.gateway.door import Door, listening_sockets
from serverless_triton.scheduler.gateway.settings import ConnectionLimits


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
        self._listeners: list[asyncio.Server] = []
        self.port = port

    async def start(self) -> None:
        """Raises OSError where the address is taken."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        handshake_s = None if self._tls is None else self._limits.handshake_timeout_s
        stalled_ms = int(self._limits.stalled_timeout_s * 1000)
        listening = listening_sockets(self._host, self.port, self._door())
        self.port = listening[0].getsockname()[1]
        for bound in listening:
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stalled_ms)  # connections inherit it
            listener = await loop.create_server(server, sock=bound, ssl=self._tls, ssl_handshake_timeout=handshake_s)
            self._listeners.append(listener)

    def _door(self) -> Door:
        most, most_each = self._limits.max_http_connections, self._limits.max_http_connections_per_address
        return Door("connections", most=most, most_each=most_each)

    async def stop(self) -> None:
        for listener in self._listeners:
            listener.close()
        await self._runner.cleanup()
