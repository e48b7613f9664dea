"""A request's body as bytes, whatever it was compressed with. Its size is bounded by the application's limit."""

from __future__ import annotations

from aiohttp import web

from serverless_triton.scheduler.errors import InvalidRequest


async def read_body(request: web.Request) -> bytes:
    """Raises InvalidRequest for a body that is not compressed as it says, and aiohttp's error for one too large."""
    try:
        return await request.read()
    except web.RequestPayloadError as error:
        raise InvalidRequest("the request's body cannot be decoded as its Content-Encoding says") from error


async def close_if_unreadable(request: web.Request, response: web.StreamResponse) -> None:
    """For an application's `on_response_prepare`: there is no next request where a body has no end."""
    if request.content.exception() is not None:
        request.content.feed_eof()  # or aiohttp would read on, and fail again
        response.force_close()
        response.headers["Connection"] = "close"  # its headers are made already
