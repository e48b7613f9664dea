"""KServe v2 and Triton's generate extension over HTTP, as Triton's port 8000 speaks them.

Routes, statuses and bodies; the answers are `service.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from aiohttp import web
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.admission import StreamId
from serverless_triton.scheduler.errors import InvalidRequest, SchedulerError
from serverless_triton.scheduler.gateway.access import Access
from serverless_triton.scheduler.gateway.generate import read_generate_body, write_generate_body
from serverless_triton.scheduler.gateway.http_body import BODY_TIMEOUT_S, check_coding, close_if_unreadable, read_body
from serverless_triton.scheduler.gateway.http_coding import IDENTITY, encode, preferred_coding
from serverless_triton.scheduler.gateway.http_infer import HEADER_LENGTH, read_infer_body, write_infer_body
from serverless_triton.scheduler.gateway.http_json import dumps, json_answer
from serverless_triton.scheduler.gateway.http_settings import SettingsRoutes
from serverless_triton.scheduler.gateway.json_form import as_flag, as_text, members, message_to_json, parse_json
from serverless_triton.scheduler.gateway.metrics import GatewayMetrics
from serverless_triton.scheduler.gateway.notices import receipt_header
from serverless_triton.scheduler.gateway.openapi import document
from serverless_triton.scheduler.gateway.passing import PassedStream
from serverless_triton.scheduler.gateway.relay import RelayedStream
from serverless_triton.scheduler.gateway.service import InferenceService, Unsupported
from serverless_triton.scheduler.gateway.statuses import STREAM_ID_HEADER, error_headers, http_status
from serverless_triton.scheduler.gateway.terms import http_terms
from serverless_triton.scheduler.receipts import Receipt, ReceiptBook, to_json

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LIMIT = re.compile(r"[0-9]{1,9}")
_SHOWN_OF_STREAM_ID = 8  # as in logs: the whole id is a capability
_MODEL = "/v2/models/{model}"
_NOT_ONE = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various number "
    "of responses"
)


class HttpFrontend:
    """The handlers."""

    def __init__(
        self,
        service: InferenceService,
        access: Access,
        metrics: GatewayMetrics,
        receipts: ReceiptBook,
        cluster_status: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        self._service = service
        self._access = access
        self._metrics = metrics
        self._receipts = receipts
        self._cluster_status = cluster_status

    def app(self, max_body_bytes: int, body_timeout_s: float) -> web.Application:
        app = web.Application(client_max_size=max_body_bytes, middlewares=[self._errors, self._access.middleware])
        app[BODY_TIMEOUT_S] = body_timeout_s
        app.on_response_prepare.append(close_if_unreadable)
        settings = SettingsRoutes(self._of)
        for path, handler in (self._gets() | settings.gets()).items():
            app.router.add_get(path, handler)
        for path, handler in (self._posts() | settings.posts()).items():
            app.router.add_post(path, handler)
        return app

    def _gets(self) -> dict[str, Handler]:
        routes: dict[str, Handler] = {
            "/openapi.json": self._openapi,
            "/v2": self._server_metadata,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
            "/v2/models/stats": self._statistics,
            "/v2/cluster/status": self._status,
            "/v2/cluster/outlook/{model}": self._outlook,
            "/v2/cluster/receipts": self._newest_receipts,
            "/v2/cluster/receipts/{stream}": self._stream_receipts,
        }
        of_model: dict[str, Handler] = {
            "": self._model_metadata,
            "/ready": self._model_ready,
            "/config": self._model_config,
            "/stats": self._statistics,
        }
        return routes | _with_versions(of_model)

    def _posts(self) -> dict[str, Handler]:
        routes: dict[str, Handler] = {}
        for repository in ("/v2/repository", "/v2/repository/{repository}"):
            routes[f"{repository}/index"] = self._index
            routes[f"{repository}/models/{{model}}/load"] = self._load
            routes[f"{repository}/models/{{model}}/unload"] = self._unload
        of_model: dict[str, Handler] = {
            "/infer": self._infer,
            "/generate": self._generate,
            "/generate_stream": self._generate_stream,
        }
        return routes | _with_versions(of_model)

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except SchedulerError as error:
            self._metrics.failed(error)
            return _error(http_status(error), str(error), error_headers(error))
        except web.HTTPException as error:
            allow = error.headers.get("Allow")
            return _error(HTTPStatus(error.status), error.reason, {"Allow": allow} if allow else None)

    def _of(self, request: web.Request) -> InferenceService:
        """What its sender may see and do."""
        return self._service.of(self._access.caller(request.headers.items()))

    async def _openapi(self, request: web.Request) -> web.StreamResponse:
        return json_answer(document())

    async def _server_metadata(self, request: web.Request) -> web.StreamResponse:
        return _message(self._service.server_metadata())

    async def _live(self, request: web.Request) -> web.StreamResponse:
        return web.Response()

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=HTTPStatus.OK if self._service.is_ready() else HTTPStatus.BAD_REQUEST)

    async def _model_metadata(self, request: web.Request) -> web.StreamResponse:
        return _message(self._of(request).model_metadata(*_model(request)))

    async def _model_ready(self, request: web.Request) -> web.StreamResponse:
        ready = self._of(request).model_ready(*_model(request))
        return web.Response() if ready else _error(HTTPStatus.BAD_REQUEST, "Model version not ready")

    async def _model_config(self, request: web.Request) -> web.StreamResponse:
        return _message(self._of(request).model_config(*_model(request)).config)

    async def _statistics(self, request: web.Request) -> web.StreamResponse:
        return _message(self._of(request).model_statistics(*_model(request)))

    async def _index(self, request: web.Request) -> web.StreamResponse:
        ready = as_flag((await _options(request)).get("ready", False))
        index = self._of(request).repository_index("", ready_only=ready)
        models = [message_to_json(model) for model in index.models]
        return json_answer([{key: text for key, text in model.items() if text} for model in models])

    async def _load(self, request: web.Request) -> web.StreamResponse:
        parameters = _load_parameters((await _options(request)).get("parameters", {}))
        await self._of(request).load(request.match_info["model"], _repository(request), parameters)
        return web.Response(content_type="application/json")

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        await _options(request)
        await self._of(request).unload(request.match_info["model"], _repository(request))
        return web.Response(content_type="application/json")

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return json_answer(await self._cluster_status())

    async def _outlook(self, request: web.Request) -> web.StreamResponse:
        return json_answer(asdict(await self._of(request).outlook(request.match_info["model"])))

    async def _newest_receipts(self, request: web.Request) -> web.StreamResponse:
        limit = request.query.get("limit", "100")
        count = int(limit) if _LIMIT.fullmatch(limit) else 100
        return json_answer({"receipts": [_listed(receipt) for receipt in self._receipts.newest(count)]})

    async def _stream_receipts(self, request: web.Request) -> web.StreamResponse:
        """Of the caller's own streams, or of all with the admin right."""
        caller = self._of(request).caller
        stream = StreamId(request.match_info["stream"])
        receipts = self._receipts.of(stream, None if caller.admin else caller.tenant)
        if not receipts:
            return _error(HTTPStatus.NOT_FOUND, "no receipt of this stream is kept")
        return json_answer({"receipts": [to_json(receipt) for receipt in receipts]})

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        """The whole text in one response, which stock Triton refuses for decoupled models."""
        service, (name, version) = self._of(request), _model(request)
        entry = service.catalogue.entry(name)
        entry.version(version)
        if entry.answers_any_number:
            raise Unsupported("HTTP end point doesn't support models with decoupled transaction policy")
        body = await read_body(request)
        check_coding(request)
        asked = read_infer_body(body, request.headers.get(HEADER_LENGTH), entry, version)
        stream = service.open(asked.request, http_terms(request.headers), unary=True)
        response = await _whole(stream)
        answer, header_length = write_infer_body(response, asked)
        headers = _stream_headers(stream, response)
        if header_length is not None:
            headers[HEADER_LENGTH] = str(header_length)
        kind = "application/json" if header_length is None else "application/octet-stream"
        coding = preferred_coding(request.headers.get("Accept-Encoding"))
        if coding != IDENTITY:
            headers["Content-Encoding"] = coding
        return web.Response(body=encode(answer, coding), headers=headers, content_type=kind)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        terms, service = http_terms(request.headers), self._of(request)
        asked = await self._generate_request(request)
        stream = service.open(asked, terms, unary=not service.catalogue.entry(asked.model_name).answers_any_number)
        response = await _only(stream)
        return json_answer(write_generate_body(response), headers=_stream_headers(stream, response))

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        terms = http_terms(request.headers)
        stream = self._of(request).open(await self._generate_request(request), terms)
        async with aclosing(stream.responses()) as responses:
            first = await anext(responses, None)  # an error before it still has a status of its own
            answer = web.StreamResponse(headers=_stream_headers(stream, first))
            answer.content_type, answer.charset = "text/event-stream", "utf-8"
            await answer.prepare(request)
            try:
                if first is not None:
                    await _send_event(answer, write_generate_body(first))
                async for response in responses:
                    await _send_event(answer, write_generate_body(response))
            except SchedulerError as error:
                self._metrics.failed(error)
                await _send_event(answer, _error_event(error))
            await answer.write_eof()
        return answer

    async def _generate_request(self, request: web.Request) -> pb.ModelInferRequest:
        name, version = _model(request)
        entry = self._of(request).catalogue.entry(name)
        return read_generate_body(await read_body(request), entry, version)


def _with_versions(routes: dict[str, Handler]) -> dict[str, Handler]:
    bases = (_MODEL, _MODEL + r"/versions/{version:\d+}")
    return {base + path: handler for base in bases for path, handler in routes.items()}


def _model(request: web.Request) -> tuple[str, str]:
    return request.match_info.get("model", ""), request.match_info.get("version", "")


def _load_parameters(values: Any) -> dict[str, Any]:
    """Of a load, whose values are texts. Raises InvalidRequest in Triton's words."""
    parameters = members(values)
    for name, value in parameters.items():
        as_text(value)
        if name != "config" and not name.startswith("file:"):
            raise InvalidRequest("unexpected error on creating Triton parameter")
    return parameters


def _repository(request: web.Request) -> str:
    return request.match_info.get("repository", "")


async def _options(request: web.Request) -> dict[str, Any]:
    body = await read_body(request)
    return members(parse_json(body), "request") if body else {}


def _listed(receipt: Receipt) -> dict[str, Any]:
    return {**to_json(receipt), "stream": receipt.stream[:_SHOWN_OF_STREAM_ID]}


async def _whole(stream: RelayedStream | PassedStream) -> pb.ModelInferResponse:
    async with aclosing(stream.responses()) as responses:
        return [response async for response in responses][-1]


async def _only(stream: RelayedStream | PassedStream) -> pb.ModelInferResponse:
    """The one response. Raises InvalidRequest in Triton's words where its model has another number of them."""
    async with aclosing(stream.responses()) as responses:
        first = await anext(responses, None)
        if first is None or await anext(responses, None) is not None:
            raise InvalidRequest(_NOT_ONE)
        return first


def _stream_headers(stream: RelayedStream | PassedStream, response: pb.ModelInferResponse | None) -> dict[str, str]:
    """Of an answer that begins with this response."""
    return {STREAM_ID_HEADER: stream.id, **({} if response is None else receipt_header(response))}


def _error_event(error: SchedulerError) -> dict[str, object]:
    """Instead of status and headers, which have gone out."""
    later = {} if error.retry_after_s is None else {"retry_after_s": error.retry_after_s}
    return {"error": str(error), **later}


async def _send_event(answer: web.StreamResponse, value: object) -> None:
    await answer.write(f"data: {dumps(value)}\n\n".encode())


def _message(message: Message) -> web.Response:
    return json_answer(message_to_json(message))


def _error(status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return json_answer({"error": message}, status, headers)
