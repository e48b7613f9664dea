"""The listening side of an aiohttp application."""

from __future__ import annotations

from aiohttp import web


class HttpSite:
    """`port` is the one it got. A handler whose client goes away is cancelled."""

    def __init__(self, app: web.Application, host: str, port: int, *, drain_s: float = 0.0) -> None:
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=drain_s)
        self._host = host
        self.port = port

    async def start(self) -> None:
        """Raises OSError where the address is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()
