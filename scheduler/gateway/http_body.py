"""A request's body as bytes, whatever it was compressed with. Its size is bounded by the application's limit."""

from __future__ import annotations

import asyncio

from aiohttp import web

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.message_budget import http_share

BODY_TIMEOUT_S: web.AppKey[float] = web.AppKey("body_timeout_s", float)  # of the application, or of one above it


class UnknownCoding(InvalidRequest):
    code = "UNIMPLEMENTED"


async def read_body(request: web.Request) -> bytes:
    """Raises InvalidRequest for one that is not compressed as it says, Overloaded where there is no room for it, and
    aiohttp's errors for one too large or late.
    """
    try:
        if request.content.is_eof():  # all of it is here: nothing to wait for
            return await _read(request)
        return await asyncio.wait_for(_read(request), request.config_dict[BODY_TIMEOUT_S])
    except asyncio.TimeoutError:
        raise web.HTTPRequestTimeout(reason="the request's body did not come in time") from None
    except web.RequestPayloadError as error:
        raise InvalidRequest("the request's body cannot be decoded as its Content-Encoding says") from error


async def _read(request: web.Request) -> bytes:
    """As aiohttp reads it, but counted as it comes: nobody has to say how long it will be."""
    share, body = http_share(), bytearray()
    while chunk := await request.content.readany():
        share.add(len(chunk))
        body += chunk
        if len(body) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(max_size=request.client_max_size, actual_size=len(body))
    return bytes(body)


def check_coding(request: web.Request) -> None:
    """Raises UnknownCoding where an infer request's body is in a coding that Triton does not read."""
    if request.headers.get("Content-Encoding", "identity") not in ("identity", "gzip", "deflate"):
        raise UnknownCoding("Unsupported compression type")


async def close_if_unreadable(request: web.Request, response: web.StreamResponse) -> None:
    """For an application's `on_response_prepare`: there is no next request where a body has no end."""
    if request.content.exception() is not None:
        request.content.feed_eof()  # or aiohttp would read on, and fail again
        response.force_close()
        response.headers["Connection"] = "close"  # its headers are made already
