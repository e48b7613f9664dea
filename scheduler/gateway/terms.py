"""What a call says beside its message, in HTTP headers or by gRPC itself: how long its answer may take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.request import GenerationRequest

TIMEOUT_HEADER = "Triton-Request-Timeout-Ms"
_MILLISECONDS = re.compile(r"0*[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """One call's."""

    timeout_s: float | None = None

    def of(self, request: GenerationRequest) -> GenerationRequest:
        """The request on these terms. Where it bounds its time itself, the shorter bound counts."""
        bounds = [bound for bound in (self.timeout_s, request.timeout_s) if bound is not None]
        return replace(request, timeout_s=min(bounds, default=None))


def http_terms(headers: Mapping[str, str]) -> Terms:
    """Raises InvalidRequest."""
    timeout = headers.get(TIMEOUT_HEADER)
    if timeout is None:
        return Terms()
    if len(timeout) > 32 or not _MILLISECONDS.fullmatch(timeout):
        raise InvalidRequest(f"header '{TIMEOUT_HEADER}' must be whole milliseconds from 1 to 999999999")
    return Terms(timeout_s=int(timeout) / 1000)


def grpc_terms(time_remaining_s: float | None) -> Terms:
    """None: the client has set no deadline."""
    return Terms(timeout_s=time_remaining_s)
