"""grpc.health.v1, which gRPC's own probes ask, beside Triton's service on the same port.

As Triton has it: `Check` knows one answer, whether the server is ready, and gives it for any service's name. `Watch` is
not served; the protocol has clients take that for healthy.

    message HealthCheckRequest { string service = 1; }        message HealthCheckResponse { ServingStatus status = 1; }
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

SERVICE = "grpc.health.v1.Health"
# HealthCheckResponse in protobuf's encoding: field 1, a varint.
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"


class HealthService:
    """What a probe may ask."""

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self._is_ready = is_ready

    def add_to(self, server: grpc.aio.Server) -> None:
        check = grpc.unary_unary_rpc_method_handler(self._check, request_deserializer=bytes, response_serializer=bytes)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Check": check}),))

    async def _check(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return _SERVING if self._is_ready() else _NOT_SERVING
