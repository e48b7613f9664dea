"""google.rpc.RetryInfo, which gRPC's own libraries look for in a call's `grpc-status-details-bin` (AIP-193).

Its messages are few enough to be written here field by field.
"""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration

_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
_NANOSECONDS = 1_000_000_000


def retry_status(code: str, message: str, delay_s: float) -> bytes:
    """A google.rpc.Status (code = 1, message = 2, details = 3) with one RetryInfo (retry_delay = 1)."""
    seconds, nanos = divmod(round(delay_s * _NANOSECONDS), _NANOSECONDS)
    retry_info = _field(1, Duration(seconds=seconds, nanos=nanos).SerializeToString())
    detail = Any(type_url=_RETRY_INFO, value=retry_info).SerializeToString()
    number = grpc.StatusCode[code].value[0]
    return b"\x08" + _varint(number) + _field(2, message.encode(errors="replace")) + _field(3, detail)


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
