"""Settings and shared memory over HTTP: what `server_settings.py` and `shared_memory.py` say, as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from serverless_triton.scheduler.gateway import shared_memory
from serverless_triton.scheduler.gateway.http_body import read_body
from serverless_triton.scheduler.gateway.http_json import json_answer
from serverless_triton.scheduler.gateway.json_form import parse_json
from serverless_triton.scheduler.gateway.server_settings import (
    LOG,
    TRACE,
    check_log,
    check_trace,
    log_from_json,
    trace_from_json,
)
from serverless_triton.scheduler.gateway.service import InferenceService

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_KINDS = ("system", "cuda")


class SettingsRoutes:
    """The handlers, by path."""

    def __init__(self, service_of: Callable[[web.Request], InferenceService]) -> None:
        self._service_of = service_of  # what a request's sender may see and do

    def gets(self) -> dict[str, Handler]:
        routes: dict[str, Handler] = {"/v2/logging": self._log, "/v2/trace/setting": self._trace}
        routes["/v2/models/{model}/trace/setting"] = self._trace
        for kind in _KINDS:
            for path in (f"/v2/{kind}sharedmemory/status", f"/v2/{kind}sharedmemory/region/{{region}}/status"):
                routes[path] = self._of(kind, self._memory_status)
        return routes

    def posts(self) -> dict[str, Handler]:
        routes: dict[str, Handler] = {"/v2/logging": self._set_log, "/v2/trace/setting": self._set_trace}
        routes["/v2/models/{model}/trace/setting"] = self._set_trace
        for kind in _KINDS:
            for base in (f"/v2/{kind}sharedmemory", f"/v2/{kind}sharedmemory/region/{{region}}"):
                routes[f"{base}/register"] = self._of(kind, self._register)
                routes[f"{base}/unregister"] = self._unregister
        return routes

    def _of(self, kind: str, handle: Callable[[web.Request, str], Awaitable[web.StreamResponse]]) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            return await handle(request, kind)

        return handler

    async def _trace(self, request: web.Request) -> web.StreamResponse:
        self._service_of(request).check_traced(request.match_info.get("model", ""))
        return json_answer({name: values if name == "trace_level" else values[0] for name, values in TRACE.items()})

    async def _set_trace(self, request: web.Request) -> web.StreamResponse:
        self._service_of(request).check_traced(request.match_info.get("model", ""))
        check_trace(trace_from_json(await _fields(request)), "the server does not support tracing")
        return await self._trace(request)

    async def _log(self, request: web.Request) -> web.StreamResponse:
        return json_answer(dict(LOG))

    async def _set_log(self, request: web.Request) -> web.StreamResponse:
        check_log(log_from_json(await _fields(request)))
        return await self._log(request)

    async def _memory_status(self, request: web.Request, kind: str) -> web.StreamResponse:
        shared_memory.check_status(kind, _region(request))
        return json_answer([])

    async def _register(self, request: web.Request, kind: str) -> web.StreamResponse:
        name = _region(request)
        if not name:
            raise shared_memory.needs_a_name(kind)
        body = parse_json(await read_body(request))
        raise shared_memory.refuse_system_json(body) if kind == "system" else shared_memory.refuse_cuda_json(body)

    async def _unregister(self, request: web.Request) -> web.StreamResponse:
        return web.Response(content_type="application/json")


def _region(request: web.Request) -> str:
    return request.match_info.get("region", "")


async def _fields(request: web.Request) -> Mapping[str, Any]:
    """Triton finds nothing in what is no object."""
    value = parse_json(await read_body(request))
    return value if isinstance(value, dict) else {}
