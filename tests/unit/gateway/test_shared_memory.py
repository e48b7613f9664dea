"""Registrations of shared memory over HTTP: sound or not, none is taken, and each is told why."""

from __future__ import annotations

from typing import Any

import pytest

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.shared_memory import check_status, refuse_cuda_json, refuse_system_json

SYSTEM = {"key": "/x", "offset": 0, "byte_size": 8}
CUDA = {"raw_handle": {"b64": "A" * 86 + "=="}, "device_id": 0, "byte_size": 8}


def told(refuse: Any, *given: Any) -> str:
    try:
        return str(refuse(*given))
    except InvalidRequest as error:
        return str(error)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (SYSTEM, "Unable to open shared memory region: '/x'"),
        ({}, "Shared memory register request has no 'key' field"),
        ([], "Shared memory register request has no 'key' field"),
        ({**SYSTEM, "key": 5}, "attempt to access JSON non-string as string"),
        ({**SYSTEM, "offset": -1}, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ({"key": "/x"}, "Shared memory register request has no 'byte_size' field"),
        ({**SYSTEM, "byte_size": 2**64}, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
    ],
)
def test_system_memory(body: Any, words: str):
    assert told(refuse_system_json, body) == words


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (CUDA, "failed to register shared memory region: invalid args"),
        ({**CUDA, "raw_handle": {"b64": "AAAA"}}, "must be a valid base64 encoded cudaIpcMemHandle_t"),
        ({}, "Shared memory register request has no 'raw_handle' field"),
        ({**CUDA, "raw_handle": 5}, "attempt to access JSON non-object as object"),
        ({**CUDA, "raw_handle": {}}, "attempt to access non-existing object member 'b64'"),
        ({"raw_handle": {"b64": "AAAA"}}, "attempt to access non-existing object member 'byte_size'"),
    ],
)
def test_cuda_memory(body: Any, words: str):
    assert words in told(refuse_cuda_json, body)


def test_there_is_no_region():
    check_status("system", "")
    with pytest.raises(InvalidRequest, match="Unable to find cuda shared memory region: 'r'"):
        check_status("cuda", "r")
