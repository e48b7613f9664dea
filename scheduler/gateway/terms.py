"""What a call says beside its message, in headers, metadata or by gRPC itself: how long it may take, its receipt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.request import GenerationRequest

TIMEOUT_HEADER = "Triton-Request-Timeout-Ms"
RETURN_RECEIPT_HEADER = "Triton-Return-Receipt"
_LONGEST = 32  # characters of a number that are looked at
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_MILLISECONDS = re.compile(r"0*[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """One call's."""

    timeout_s: float | None = None
    returns_receipt: bool = False

    def of(self, request: GenerationRequest) -> GenerationRequest:
        """The request on these terms. Where it bounds its time itself, the shorter bound counts."""
        bounds = [bound for bound in (self.timeout_s, request.timeout_s) if bound is not None]
        returns_receipt = self.returns_receipt or request.returns_receipt
        return replace(request, timeout_s=min(bounds, default=None), returns_receipt=returns_receipt)


def http_terms(headers: Mapping[str, str]) -> Terms:
    """Raises InvalidRequest."""
    return Terms(
        timeout_s=_timeout_s(headers.get(TIMEOUT_HEADER)),
        returns_receipt=_returns_receipt(headers.get(RETURN_RECEIPT_HEADER)),
    )


def grpc_terms(time_remaining_s: float | None, metadata: Iterable[tuple[str, str | bytes]]) -> Terms:
    """Without a deadline of the client's there is no time remaining. Raises InvalidRequest."""
    said = dict(metadata).get(RETURN_RECEIPT_HEADER.lower())
    return Terms(timeout_s=time_remaining_s, returns_receipt=_returns_receipt(said))


def _timeout_s(said: str | None) -> float | None:
    if said is None:
        return None
    if len(said) > _LONGEST or not _MILLISECONDS.fullmatch(said):
        raise InvalidRequest(f"header '{TIMEOUT_HEADER}' must be whole milliseconds from 1 to 999999999")
    return int(said) / 1000


def _returns_receipt(said: str | bytes | None) -> bool:
    if said is None:
        return False
    found = _FLAGS.get(said.lower()) if isinstance(said, str) else None
    if found is None:
        raise InvalidRequest(f"header '{RETURN_RECEIPT_HEADER}' must be true or false")
    return found
