"""Unary gRPC calls that are served as streams of one message, because only then can their servicer end the wait for it.

grpc.aio hands a unary call to its servicer once the message is there, and waits for that as long as the client likes;
a call counts among those that are open at the same time from its headers on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from serverless_triton.scheduler.gateway.access import is_open
from serverless_triton.scheduler.gateway.grpc_wire import begin_abort

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # grpc.RpcMethodHandler, which grpc-stubs gives no fields

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # grpc-stubs leaves it out
_LATE = "the call's message did not come in time"
_OPEN_METHOD_S = 5.0  # of calls that anybody may make, whose messages say nothing


class TimelyMessages(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # it takes none at run time
    """Ends unary calls whose message does not come within `limit_s`, those that need no key within seconds."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        limit_s = min(self._limit_s, _OPEN_METHOD_S) if is_open(handler_call_details.method) else self._limit_s
        serve = _in_time(handler.unary_unary, limit_s)
        return grpc.stream_stream_rpc_method_handler(serve, handler.request_deserializer, handler.response_serializer)


def _in_time(
    serve: Callable[[Any, Context], Awaitable[Any]], limit_s: float
) -> Callable[[Any, Context], Awaitable[None]]:
    async def serve_in_time(_: Any, context: Context) -> None:
        request = await _message(context, limit_s)
        await context.write(await serve(request, context))

    return serve_in_time


async def _message(context: Context, limit_s: float) -> Any:
    """The one that a unary call has. A call that has none ends here, by grpc's AbortError."""
    loop = asyncio.get_running_loop()
    late = loop.call_later(limit_s, begin_abort, context, grpc.StatusCode.DEADLINE_EXCEEDED, _LATE)
    try:
        request = await context.read()
    finally:
        late.cancel()
    if request is _EOF:
        await context.abort(grpc.StatusCode.INTERNAL, "the call ended without a message")
    return request
