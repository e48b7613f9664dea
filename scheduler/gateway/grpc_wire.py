"""What grpc.aio does not do by itself: bytes that are no message, and calls that end from beside their handlers.

Such bytes end a call with INTERNAL, as in gRPC's C++ servers. grpc.aio answers UNKNOWN to a unary call, and takes them
on a client's stream for the stream's end, so that a request would go unanswered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

UNREADABLE = "Unable to parse request"  # in the words of gRPC's C++ servers

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # grpc.RpcMethodHandler, which grpc-stubs gives no fields


def begin_abort(context: Context, code: grpc.StatusCode, words: str) -> asyncio.Task[Any]:
    """Ends a call whose handler waits: its read raises grpc's AbortError, and so does every later one."""
    ending: asyncio.Task[Any] = asyncio.get_running_loop().create_task(context.abort(code, words))
    ending.add_done_callback(lambda done: done.cancelled() or done.exception())  # the AbortError, which nobody awaits
    return ending


class _Unreadable:
    """Stands for a message that could not be read."""


class ReadableMessages(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # it takes none at run time
    """Servicers behind it see messages only."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method
            return None
        read = _tolerant(handler.request_deserializer)
        if handler.request_streaming:
            return handler._replace(request_deserializer=read, stream_stream=_streamed(handler.stream_stream))
        return handler._replace(request_deserializer=read, unary_unary=_unary(handler.unary_unary))


def _tolerant(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read_or_tell(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return _Unreadable()

    return read_or_tell


def _unary(serve: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
    async def serve_readable(request: Any, context: Context) -> Any:
        if isinstance(request, _Unreadable):
            await context.abort(grpc.StatusCode.INTERNAL, UNREADABLE)
        return await serve(request, context)

    return serve_readable


def _streamed(
    serve: Callable[[AsyncIterator[Any], Context], Awaitable[None]],
) -> Callable[[AsyncIterator[Any], Context], Awaitable[None]]:
    async def serve_readable(requests: AsyncIterator[Any], context: Context) -> None:
        heard = _Heard(requests)
        await serve(heard, context)
        if heard.unreadable:
            await context.abort(grpc.StatusCode.INTERNAL, UNREADABLE)

    return serve_readable


class _Heard:
    """A client's messages up to one that cannot be read; those before it are still answered."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = requests
        self.unreadable = False

    def __aiter__(self) -> _Heard:
        return self

    async def __anext__(self) -> Any:
        if self.unreadable:
            raise StopAsyncIteration
        request = await anext(self._requests)
        if isinstance(request, _Unreadable):
            self.unreadable = True
            raise StopAsyncIteration
        return request
