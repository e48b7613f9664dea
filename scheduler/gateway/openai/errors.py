"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

The status is that of every HTTP answer; `type` and `code` are those that OpenAI's clients know.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from serverless_triton.scheduler.errors import InvalidRequest, RateLimited, SchedulerError
from serverless_triton.scheduler.gateway.statuses import http_status

_MOST_SHOWN = 128  # characters of what a client wrote
_TYPES = {HTTPStatus.TOO_MANY_REQUESTS: "requests"}
_OUT_OF_QUOTA = "insufficient_quota"  # both type and code
_CODES = {
    HTTPStatus.UNAUTHORIZED: "invalid_api_key",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded",
    HTTPStatus.SERVICE_UNAVAILABLE: "service_unavailable",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout",
}


class InvalidParameter(InvalidRequest):
    """One member of the body is wrong. `param` names it."""

    def __init__(self, param: str, message: str, openai_code: str | None = None) -> None:
        super().__init__(message)
        self.param = param[:_MOST_SHOWN]
        self.openai_code = openai_code


class NoSuchModel(SchedulerError):
    """In OpenAI's words; a name that could be no model's is only one more that does not exist."""

    code = "NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"The model `{name[:_MOST_SHOWN]}` does not exist")


def error_body(error: SchedulerError) -> tuple[HTTPStatus, dict[str, Any]]:
    """Status and body of an answer, or of the event that ends a stream."""
    status = http_status(error)
    code, param = _CODES.get(status), None
    if isinstance(error, NoSuchModel):
        code, param = "model_not_found", "model"
    if isinstance(error, InvalidParameter):
        code, param = error.openai_code, error.param
    body = shape(status, str(error), param, code)
    if isinstance(error, RateLimited):
        body["error"].update(_ran_out(error))
    return status, body


def _ran_out(error: RateLimited) -> dict[str, str]:
    if error.what == "quota":
        return {"type": _OUT_OF_QUOTA, "code": _OUT_OF_QUOTA}
    return {"type": error.what}


def shape(status: HTTPStatus, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return {"error": {"message": message, "type": _TYPES.get(status, kind), "param": param, "code": code}}
