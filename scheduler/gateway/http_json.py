"""JSON as an answer over HTTP: compact, and whatever text a client sent comes back in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web


def dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def json_answer(
    value: object, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    body = dumps(value).encode(errors="backslashreplace")  # half a surrogate pair becomes JSON's escape of it again
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")
