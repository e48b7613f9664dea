"""What answers have in common: the HTTP status that an error's code becomes, and the headers beside it."""

from __future__ import annotations

import math
from http import HTTPStatus

from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.gateway.retry_info import retry_status

STREAM_ID_HEADER = "Triton-Stream-Id"
_STATUSES = {
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
    "UNAUTHENTICATED": HTTPStatus.UNAUTHORIZED,
    "PERMISSION_DENIED": HTTPStatus.FORBIDDEN,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "RESOURCE_EXHAUSTED": HTTPStatus.TOO_MANY_REQUESTS,
    "UNIMPLEMENTED": HTTPStatus.NOT_IMPLEMENTED,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
    "DEADLINE_EXCEEDED": HTTPStatus.GATEWAY_TIMEOUT,
    "UNKNOWN": HTTPStatus.BAD_REQUEST,
    "CANCELLED": HTTPStatus.BAD_REQUEST,
    "ALREADY_EXISTS": HTTPStatus.BAD_REQUEST,
}


def http_status(error: SchedulerError) -> HTTPStatus:
    return _STATUSES.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)


def error_headers(error: SchedulerError) -> dict[str, str]:
    """What an HTTP answer says beside status and body."""
    headers = {}
    if error.code == "UNAUTHENTICATED":
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["Retry-After"] = _whole_seconds(error.retry_after_s)
    return headers


def trailing_metadata(error: SchedulerError) -> tuple[tuple[str, str | bytes], ...]:
    """What a gRPC call ends with beside its status."""
    if error.retry_after_s is None:
        return ()
    details = retry_status(error.code, str(error), error.retry_after_s)
    return (("retry-after", _whole_seconds(error.retry_after_s)), ("grpc-status-details-bin", details))


def _whole_seconds(seconds: float) -> str:
    """RFC 9110's delay-seconds. Never 0, which would ask for a busy loop."""
    return str(max(1, math.ceil(seconds)))
