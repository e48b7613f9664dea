"""OpenAI's API over HTTP: models, completions, chats. Mounted under /v1.

Routes and streams of events; what a request means is `requests.py`'s, what an answer looks like `answers.py`'s. Every
choice of a request is a relayed stream of its own.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from aiohttp import web

from serverless_triton.scheduler.catalogue import ModelEntry
from serverless_triton.scheduler.errors import InvalidModelName, SchedulerError, UnknownModel
from serverless_triton.scheduler.gateway.access import Access
from serverless_triton.scheduler.gateway.http_body import read_body
from serverless_triton.scheduler.gateway.metrics import GatewayMetrics
from serverless_triton.scheduler.gateway.openai.answers import Answer, Piece, read_piece
from serverless_triton.scheduler.gateway.openai.errors import InvalidParameter, NoSuchModel, error_body, shape
from serverless_triton.scheduler.gateway.openai.merge import merged
from serverless_triton.scheduler.gateway.openai.requests import Asked, read_chat, read_completion
from serverless_triton.scheduler.gateway.request import GenerationRequest
from serverless_triton.scheduler.gateway.service import InferenceService
from serverless_triton.scheduler.gateway.statuses import STREAM_ID_HEADER, error_headers
from serverless_triton.scheduler.gateway.terms import http_terms

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Pieces = AsyncGenerator[tuple[int, Piece], None]

OWNER = "serverless-triton"


class OpenAIFrontend:
    """The handlers. `wall_clock` tells Unix time."""

    def __init__(
        self,
        service: InferenceService,
        access: Access,
        metrics: GatewayMetrics,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._service = service
        self._access = access
        self._metrics = metrics
        self._wall_clock = wall_clock

    def app(self) -> web.Application:
        """To be mounted; limits are those of the application above it."""
        app = web.Application(middlewares=[self._errors, self._access.middleware])
        app.router.add_get("/models", self._models)
        app.router.add_get("/models/{model}", self._model)
        app.router.add_post("/completions", self._completions)
        app.router.add_post("/chat/completions", self._chat_completions)
        return app

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except SchedulerError as error:
            return _json(*self._failed(error), error_headers(error))
        except web.HTTPException as error:
            status = HTTPStatus(error.status)
            allow = error.headers.get("Allow")
            return _json(status, _http_error(request, status, error.reason), {"Allow": allow} if allow else None)

    def _failed(self, error: SchedulerError) -> tuple[HTTPStatus, dict[str, Any]]:
        self._metrics.failed(error)
        return error_body(error)

    def _of(self, request: web.Request) -> InferenceService:
        """What its sender may see and do."""
        return self._service.of(self._access.caller(request.headers.items()))

    async def _models(self, request: web.Request) -> web.StreamResponse:
        served = [entry for entry in self._of(request).catalogue.entries() if entry.spec is not None]
        return _json(HTTPStatus.OK, {"object": "list", "data": [_described(entry) for entry in served]})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        return _json(HTTPStatus.OK, _described(_entry(self._of(request), request.match_info["model"])))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, self._of(request), read_completion(await read_body(request)))

    async def _chat_completions(self, request: web.Request) -> web.StreamResponse:
        asked, service = read_chat(await read_body(request)), self._of(request)
        if not any(tensor.name == "messages" for tensor in _entry(service, asked.model).config.input):
            how = "its config.pbtxt has no input 'messages'; `serverless-triton add --replace` writes one"
            raise InvalidParameter("model", f"model '{asked.model}' takes no chats: {how}", "unsupported_model")
        return await self._answer(request, service, asked)

    async def _answer(self, request: web.Request, service: InferenceService, asked: Asked) -> web.StreamResponse:
        spec = _entry(service, asked.model).served()
        terms = http_terms(request.headers)
        wanted = [terms.of(service.parse(one)) for one in asked.infer_requests(spec.max_sequence_tokens)]
        service.count_request()
        answer = Answer(asked, id=secrets.token_hex(12), created_unix_s=int(self._wall_clock()))
        async with aclosing(merged([_pieces(service, one) for one in wanted])) as pieces:
            if asked.stream:
                return await self._stream(request, answer, pieces, len(wanted))
            said: list[list[Piece]] = [[] for _ in wanted]
            async for index, piece in pieces:
                said[index].append(piece)
            headers = _headers(answer, said[0][0], len(wanted))
            return _json(HTTPStatus.OK, answer.whole(said), headers)

    async def _stream(self, request: web.Request, answer: Answer, pieces: Pieces, count: int) -> web.StreamResponse:
        index, first = await anext(pieces)  # an error before it still has a status of its own
        events = web.StreamResponse(headers={**_headers(answer, first, count), "Cache-Control": "no-cache"})
        events.content_type, events.charset = "text/event-stream", "utf-8"
        await events.prepare(request)
        try:
            await _send(events, *answer.begin(), *answer.chunks(index, first))
            async for index, piece in pieces:
                await _send(events, *answer.chunks(index, piece))
            await _send(events, *answer.end())
        except SchedulerError as error:
            await _send(events, self._failed(error)[1])
        await events.write(b"data: [DONE]\n\n")
        await events.write_eof()
        return events


async def _pieces(service: InferenceService, wanted: GenerationRequest) -> AsyncGenerator[Piece, None]:
    """Opens a stream when its first piece is asked for."""
    async with aclosing(service.relay.open(wanted, service.caller).responses()) as responses:
        async for response in responses:
            yield read_piece(response)


def _entry(service: InferenceService, name: str) -> ModelEntry:
    try:
        entry = service.catalogue.entry(name)
    except (InvalidModelName, UnknownModel) as error:
        raise NoSuchModel(name) from error
    entry.served()
    return entry


def _described(entry: ModelEntry) -> dict[str, Any]:
    return {"id": entry.name, "object": "model", "created": entry.changed_unix_s, "owned_by": OWNER}


def _headers(answer: Answer, first: Piece, count: int) -> dict[str, str]:
    """A stream's id and receipt where there is one stream."""
    of_stream = {STREAM_ID_HEADER: first.stream, **first.headers} if count == 1 else {}
    return {"X-Request-Id": answer.id, **of_stream}


def _http_error(request: web.Request, status: HTTPStatus, reason: str) -> dict[str, Any]:
    """In OpenAI's words where a path or a method is wrong."""
    if status == HTTPStatus.NOT_FOUND:
        return shape(status, f"Invalid URL ({request.method} {request.path[:128]})")
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return shape(status, f"Not allowed to {request.method} on {request.path[:128]}")
    return shape(status, reason)


async def _send(events: web.StreamResponse, *values: object) -> None:
    if values:
        await events.write("".join(f"data: {_dumps(value)}\n\n" for value in values).encode())


def _json(status: HTTPStatus, value: object, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=_dumps(value).encode(), status=status, headers=headers, content_type="application/json")


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
