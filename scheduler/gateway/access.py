"""Who may call what, over HTTP and gRPC alike: requests are refused here before their bodies are read.

Health needs no key. Calls that act on the cluster need the admin right. Here a key's calls are counted; which
models a caller may use is `service.py`'s, how much it may take `limits.py`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import grpc
from aiohttp import web

from serverless_triton.scheduler.errors import Forbidden, SchedulerError, Unauthenticated
from serverless_triton.scheduler.gateway.keys import KeyRing
from serverless_triton.scheduler.gateway.limits import Limiter
from serverless_triton.scheduler.gateway.statuses import trailing_metadata
from serverless_triton.scheduler.identity import ANONYMOUS, Caller

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Context = grpc.aio.ServicerContext[Any, Any]
StreamHandler = Callable[[Any, Context], Awaitable[None]]
RpcHandler = Any  # grpc.RpcMethodHandler, which grpc-stubs gives no fields

_OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
_ADMIN_PATHS = frozenset(
    f"/v2/repository/{which}models/{{model}}/{what}" for which in ("", "{repository}/") for what in ("load", "unload")
)
_ADMIN_PREFIX = "/v2/cluster/"
_OWN_PATHS = frozenset(
    {"/v2/cluster/outlook/{model}", "/v2/cluster/receipts/{stream}"}
)  # what they answer is the caller's own business
_SERVICE = "/inference.GRPCInferenceService/"
_OPEN_METHODS = frozenset({f"{_SERVICE}ServerLive", f"{_SERVICE}ServerReady"})
_OPEN_SERVICE = "/grpc.health.v1.Health/"
_ADMIN_METHODS = frozenset({f"{_SERVICE}RepositoryModelLoad", f"{_SERVICE}RepositoryModelUnload"})


class Access:
    """The gateway's door. Without keys everybody has every right."""

    def __init__(self, keys: KeyRing | None, limiter: Limiter) -> None:
        self._keys = keys
        self._limiter = limiter

    def caller(self, headers: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Who sends these headers, or this metadata. Raises Unauthenticated."""
        return ANONYMOUS if self._keys is None else self._keys.caller(presented_key(headers))

    @property
    def middleware(self) -> Any:
        """For an application that has its own errors; each application below another needs it too."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            caller = self._check_http(request) if request.match_info.apps[-1] is request.app else None
            if caller is None:
                return await handler(request)
            with self.open_call(caller):
                return await handler(request)

        return check

    @contextmanager
    def open_call(self, caller: Caller) -> Iterator[None]:
        """For as long as a call takes. Raises RateLimited where the key has too many, at a time or a second."""
        self._limiter.take_call(caller)
        self._limiter.begin_call(caller)
        try:
            yield
        finally:
            self._limiter.end_call(caller)

    def _check_http(self, request: web.Request) -> Caller | None:
        """Who asks, None where everybody may; by the route that was found, not by how the client wrote its path.

        Raises Unauthenticated, Forbidden.
        """
        resource = request.match_info.route.resource
        path = "" if resource is None else resource.canonical
        if path in _OPEN_PATHS:
            return None
        needs_admin = path in _ADMIN_PATHS or (path.startswith(_ADMIN_PREFIX) and path not in _OWN_PATHS)
        return _with_right(self.caller(request.headers.items()), needs_admin)

    def check_metrics(self, request: web.Request) -> None:
        """Which name every model. Raises Unauthenticated, Forbidden."""
        caller = self.caller(request.headers.items())
        if not (caller.metrics or caller.admin):
            raise Forbidden(f"the key '{caller.key}' has neither the metrics' right nor the admin right")

    def check_grpc(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Caller | None:
        """As for HTTP. `method` with its service, as gRPC names it. Raises Unauthenticated, Forbidden."""
        return None if is_open(method) else _with_right(self.caller(metadata), method in _ADMIN_METHODS)


def is_open(method: str) -> bool:
    """Whether a gRPC method, with its service, needs no key. What is sent to it says nothing."""
    return method in _OPEN_METHODS or method.startswith(_OPEN_SERVICE)


def presented_key(headers: Iterable[tuple[str, str | bytes]]) -> str | None:
    """The one key that a request shows, if any. Raises Unauthenticated where it shows several, or no bearer token."""
    shown = set()
    for name, value in headers:
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        if name.lower() == "x-api-key":
            shown.add(text.strip())
        elif name.lower() == "authorization":
            scheme, _, key = text.strip().partition(" ")
            if scheme.lower() != "bearer":
                raise Unauthenticated("the Authorization header must be 'Bearer KEY'")
            shown.add(key.strip())
    if len(shown) > 1:
        raise Unauthenticated("several API keys were given")
    return next(iter(shown), None)


def _with_right(caller: Caller, needs_admin: bool) -> Caller:
    if needs_admin and not caller.admin:
        raise Forbidden(f"the key '{caller.key}' has no admin right")
    return caller


class CheckedCalls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # it takes none at run time
    """Ends calls that may not be made, before their messages have come. What is behind it serves streams only."""

    def __init__(self, access: Access, on_error: Callable[[SchedulerError], None]) -> None:
        self._access = access
        self._on_error = on_error

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[RpcHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> RpcHandler:
        handler = await continuation(handler_call_details)
        try:
            caller = self._access.check_grpc(
                handler_call_details.method, handler_call_details.invocation_metadata or ()
            )
        except SchedulerError as error:
            self._on_error(error)
            return None if handler is None else _refusing(error)
        if handler is None or caller is None:
            return handler
        return handler._replace(stream_stream=self._counted(handler.stream_stream, caller))

    def _counted(self, serve: StreamHandler, caller: Caller) -> StreamHandler:
        async def serve_counted(requests: Any, context: Context) -> None:
            with ExitStack() as stack:
                try:
                    stack.enter_context(self._access.open_call(caller))
                except SchedulerError as error:
                    self._on_error(error)
                    await _abort(context, error)
                await serve(requests, context)

        return serve_counted


def _refusing(error: SchedulerError) -> RpcHandler:
    """As a stream, whatever the method is: a unary handler is called only once the message is there."""

    async def refuse(_: Any, context: Context) -> None:
        await _abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


async def _abort(context: Context, error: SchedulerError) -> NoReturn:
    await context.abort(grpc.StatusCode[error.code], str(error), trailing_metadata(error))
