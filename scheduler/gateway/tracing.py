"""Spans of streams, for OpenTelemetry: the client's `traceparent` is a stream's parent, and the stream a worker's.

A frontend says what came with a request (`came_with`, in the request's own task); the relay opens the span and tells
replicas of it. Without telemetry a client's `traceparent` goes on to the worker as it came.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import grpc
from aiohttp import web

from serverless_triton.backend.messages import TRACEPARENT
from serverless_triton.backend.telemetry import context_of, is_traceparent, traceparent_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

TRACER = "serverless_triton.gateway"
_CAME_WITH: ContextVar[str] = ContextVar("traceparent", default="")


def came_with(traceparent: str) -> None:
    """Of the request that the current task serves; what is none of W3C's is taken for nothing."""
    _CAME_WITH.set(traceparent if is_traceparent(traceparent) else "")


class Tracing:
    """Opens the spans of a gateway's streams; without a provider there are none."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider

    def stream(self, model: str, request_id: str) -> StreamTrace:
        """For the request that the current task serves."""
        parent = _CAME_WITH.get()
        if self._provider is None:
            return StreamTrace(None, parent)
        from opentelemetry.trace import SpanKind

        span = self._provider.get_tracer(TRACER).start_span(
            f"generate {model}",
            context=context_of(parent),
            kind=SpanKind.SERVER,
            attributes={"gen_ai.request.model": model, "request_id": request_id},
        )
        return StreamTrace(span, traceparent_of(span))

    def close(self) -> None:
        """Sends what waits; may take seconds."""
        if self._provider is not None:
            self._provider.shutdown()


class StreamTrace:
    """One stream's span, if it has one. `traceparent` is what its replicas are told, "" for nothing."""

    def __init__(self, span: Span | None, traceparent: str) -> None:
        self._span = span
        self.traceparent = traceparent

    def event(self, name: str, **attributes: str | float) -> None:
        if self._span is not None:
            self._span.add_event(name, attributes)

    def end(self, **attributes: str | float) -> None:
        if self._span is not None:
            self._span.set_attributes(attributes)
            self._span.end()


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def traced_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """For HTTP: the header of this name."""
    came_with(request.headers.get(TRACEPARENT, ""))
    return await handler(request)


class TracedCalls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # it takes none at run time
    """For gRPC: the metadata of this name. A call's handler runs in the task that asks for it here."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        found = [value for name, value in handler_call_details.invocation_metadata or () if name == TRACEPARENT]
        came_with(str(found[0]) if len(found) == 1 else "")
        return await continuation(handler_call_details)
