"""Checkpoints over HTTP for a benchmark's nodes: `python -m perf.scheduler.file_server FOLDER` says its port first."""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web


async def _serve(folder: str) -> None:
    site = web.Application()
    site.router.add_static("/", folder)
    runner = web.AppRunner(site, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
