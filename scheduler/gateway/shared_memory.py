"""Triton's shared-memory extensions, answered for a server in which no region can be.

A client's shared memory is on the client's machine, and the models behind a gateway are on others. So there are no
regions: status is empty, unregistering finds nothing to do, and registering fails as it does in a Triton that cannot
open the memory.
"""

from __future__ import annotations

import re
from typing import Any

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.json_form import as_object, as_text, as_unsigned, member

_HANDLE = re.compile(r"[A-Za-z0-9+/]{86}==")  # 64 bytes in base64


class UnknownRegion(InvalidRequest):
    """A request speaks of a region; there are none."""

    code = "NOT_FOUND"


class CannotOpen(InvalidRequest):
    """A region that a client wants registered."""

    code = "INTERNAL"


def no_region(name: str) -> UnknownRegion:
    """What a request that refers to a region gets."""
    return UnknownRegion(f"Unable to find shared memory region: '{name[:128]}'")


def check_status(kind: str, name: str) -> None:
    """Of one region (`kind` "system" or "cuda"), or of all with an empty name. Raises UnknownRegion."""
    if name:
        raise UnknownRegion(f"Unable to find {kind} shared memory region: '{name[:128]}'")


def needs_a_name(kind: str) -> InvalidRequest:
    return InvalidRequest(f"'region name' is necessary to register {kind} shared memory region")


def refuse_system(key: str) -> InvalidRequest:
    return CannotOpen(f"Unable to open shared memory region: '{key[:128]}'")


def refuse_cuda() -> InvalidRequest:
    return InvalidRequest("failed to register shared memory region: invalid args")


def refuse_system_json(body: Any) -> InvalidRequest:
    """Why a registration's JSON is refused. Raises InvalidRequest where it is none."""
    fields = body if isinstance(body, dict) else {}
    if "key" not in fields:
        return InvalidRequest("Shared memory register request has no 'key' field")
    key = as_text(fields["key"])
    as_unsigned(fields.get("offset", 0))
    if "byte_size" not in fields:
        return InvalidRequest("Shared memory register request has no 'byte_size' field")
    as_unsigned(fields["byte_size"])
    return refuse_system(key)


def refuse_cuda_json(body: Any) -> InvalidRequest:
    fields = body if isinstance(body, dict) else {}
    if "raw_handle" not in fields:
        return InvalidRequest("Shared memory register request has no 'raw_handle' field")
    handle = as_text(member(as_object(fields["raw_handle"]), "b64"))
    as_unsigned(member(fields, "byte_size"))
    as_unsigned(member(fields, "device_id"))
    if not _HANDLE.fullmatch(handle):
        return InvalidRequest("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t")
    return refuse_cuda()
