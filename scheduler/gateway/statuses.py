"""What all HTTP answers have in common: the status that an error's code becomes, the header with a stream's id."""

from __future__ import annotations

from http import HTTPStatus

from serverless_triton.scheduler.errors import SchedulerError

STREAM_ID_HEADER = "Triton-Stream-Id"
_STATUSES = {
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
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
