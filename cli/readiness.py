"""Tells the person who typed `up` when the cluster can answer, and which models it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

POLL_S = 0.2
REQUEST_TIMEOUT_S = 2.0


async def announce_readiness(address: str, servers: int, repository: Path, report: Callable[[str], None]) -> None:
    """Waits until every server takes starts, then says so once. `address` is the gateway's, as a URL."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    own = aiohttp.TCPConnector(ssl=False)  # this machine's own gateway: it needs no certificate to be known
    async with aiohttp.ClientSession(timeout=timeout, connector=own) as session:
        while await _servers_ready(session, address, servers) < servers:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(POLL_S)
    report(f"ready: {servers} servers; models: {_models(repository)}; Ctrl-C ends it")


async def announce_listening(address: str, servers: int, repository: Path, report: Callable[[str], None]) -> None:
    """As above, of a gateway that answers only clients with a certificate, which `up` has not: that it listens."""
    url = urlsplit(address)
    while not await _listens(url.hostname, url.port):  # noqa: ASYNC110 - of another process
        await asyncio.sleep(POLL_S)
    wants = "it wants a client's certificate to say when its servers are ready (/v2/health/ready)"
    report(f"listening: {address}; {wants}; {servers} servers; models: {_models(repository)}; Ctrl-C ends it")


async def _listens(host: str | None, port: int | None) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), REQUEST_TIMEOUT_S)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True


def _models(repository: Path) -> str:
    return ", ".join(sorted(file.parent.name for file in repository.glob("*/config.pbtxt"))) or "none yet"


async def _servers_ready(session: aiohttp.ClientSession, address: str, servers: int) -> int:
    """How many. A gateway that wants a key for that says only whether one is; then all are taken for ready."""
    try:
        async with session.get(f"{address}/v2/cluster/status") as answer:
            if answer.status == HTTPStatus.UNAUTHORIZED:
                return servers * await _is_ready(session, address)
            status: dict[str, Any] = await answer.json()
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
        return 0  # it does not listen yet
    return sum(bool(server["takes_starts"]) for server in status["servers"])


async def _is_ready(session: aiohttp.ClientSession, address: str) -> bool:
    async with session.get(f"{address}/v2/health/ready") as answer:
        return answer.status == HTTPStatus.OK
