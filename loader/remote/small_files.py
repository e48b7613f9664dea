"""Small files over HTTP, read whole: indices, hashes, configurations, a hub's answers.

By aiohttp and not by obstore, which wants ranges and lengths that many servers do not give for generated or compressed
answers.
"""

from __future__ import annotations

import asyncio

import aiohttp
from yarl import URL

from ..errors import (
    CheckpointNotFound,
    CheckpointUnreadable,
    RemoteDenied,
    RemoteUnsuitable,
)
from .failures import TransientFailure
from .settings import RemoteSettings

READ_BYTES = 1 << 16
RETRIED_STATUSES = (408, 425, 429)


async def read_small(link: str, headers: dict[str, str], url: str, limit_bytes: int, settings: RemoteSettings) -> bytes:
    """What lies at `link`; `url` is its name in messages. `headers` go to that host alone, wherever it redirects.

    Raises CheckpointNotFound, CheckpointUnreadable past the limit, RemoteDenied, RemoteUnsuitable, TransientFailure.
    """
    timeout = aiohttp.ClientTimeout(
        total=settings.request_timeout_s, connect=settings.connect_timeout_s, sock_read=settings.stall_timeout_s
    )
    try:
        # aiohttp drops the Authorization header where a redirect leads to another origin.
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers, trust_env=True) as session,
            session.get(URL(link, encoded=True)) as response,
        ):
            _check_encrypted(link, response, url)
            _check_status(response.status, url)
            return await _content(response, url, limit_bytes)
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise TransientFailure(f"the request failed ({type(error).__name__})") from error


async def _content(response: aiohttp.ClientResponse, url: str, limit_bytes: int) -> bytes:
    content = bytearray()
    async for data in response.content.iter_chunked(READ_BYTES):
        content += data
        if len(content) > limit_bytes:
            raise CheckpointUnreadable(f"{url} is longer than the {limit_bytes} bytes that are expected there")
    return bytes(content)


def _check_encrypted(link: str, response: aiohttp.ClientResponse, url: str) -> None:
    if link.startswith("https://") and any(hop.url.scheme != "https" for hop in (*response.history, response)):
        raise RemoteUnsuitable(f"the server of {url} redirects to unencrypted http://; use another one")


def _check_status(status: int, url: str) -> None:
    if status == 200:
        return
    if status in (401, 403, 407):
        raise RemoteDenied(
            f"{url} may not be read with the credentials that the store has, or does not exist; for hf:// give HF_TOKEN"
        )
    if status in (404, 410):
        raise CheckpointNotFound(f"there is no {url}; check the URL")
    if status >= 500 or status in RETRIED_STATUSES:
        raise TransientFailure(f"it answers with HTTP status {status}")
    raise RemoteUnsuitable(f"the server of {url} answers with HTTP status {status}; check the URL")
