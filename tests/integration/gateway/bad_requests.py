"""Requests over HTTP that are wrong in many ways, by seed: sound ones with members replaced, cut off, mislabelled."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from typing import Any

_ATOMS = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**30, 1.5, -0.0, 1e308, "", "x", "m", "\ud800",
    "\x00", "é汉", "a" * 300, "INT32", "BYTES", "[]", "{}", [], {}, "user", "text", "../m", "nope", "1", "-1",
)  # fmt: skip
_KEYS = (
    "id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "text_input", "input_ids", "messages",
    "stream", "sampling_parameters", "max_tokens", "model", "prompt", "n", "stop", "seed", "role", "content", "type",
    "text", "stream_options", "include_usage", "binary_data_size", "binary_data", "ready", "temperature", "timeout",
    "priority", "triton_enable_empty_final_response", "attempt", "resume_token_ids", "shared_memory_region",
    "logit_bias", "\ud800",
)  # fmt: skip
_OF_MODELS = {
    "infer": {
        "id": "a",
        "inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["hi"]}],
        "outputs": [{"name": "text_output"}],
        "parameters": {"max_tokens": 3},
    },
    "generate": {"text_input": "hi", "max_tokens": 4, "parameters": {"seed": 1}},
    "generate_stream": {"text_input": "hi", "stream": True},
}
_OTHERS = {
    "/v1/completions": {"model": "m", "prompt": "hi", "n": 2, "stream": False, "stop": ["x"]},
    "/v1/chat/completions": {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "/v2/repository/index": {"ready": True},
    "/v2/repository/models/m/load": {},
    "/v2/repository/models/m/unload": {"parameters": {"unload_dependents": True}},
}
_NAMES = ("m", "m", "m", "m", "nope", "..", "broken", "m%2F..", "%00", "%ff", "a" * 300)
_VERSIONS = ("", "", "/versions/1", "/versions/0", "/versions/99", "/versions/" + "9" * 400)
_LENGTHS = ("0", "5", "-1", "x", "9" * 30)
_CODINGS = ("gzip", "br", "nope")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRequest:
    """One POST. A few of them happen to be sound."""

    path: str
    body: bytes
    headers: dict[str, str]


def bad_request(seed: int) -> BadRequest:
    source = random.Random(seed)
    path, sound = _call(source)
    body = _spoilt(source, json.dumps(_mutated(source, sound)).encode())
    return BadRequest(path=path, body=body, headers=_headers(source, len(body)))


def _call(source: random.Random) -> tuple[str, Any]:
    kind = source.choice([*_OF_MODELS, *_OTHERS])
    if kind in _OTHERS:
        return kind, _OTHERS[kind]
    return f"/v2/models/{source.choice(_NAMES)}{source.choice(_VERSIONS)}/{kind}", _OF_MODELS[kind]


def _mutated(source: random.Random, sound: Any) -> Any:
    value = json.loads(json.dumps(sound))
    for _ in range(source.randint(1, 3)):
        _mutate(source, value)
    return value


def _mutate(source: random.Random, node: Any) -> None:
    """Replaces something inside of it, or adds a member."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    if isinstance(node, dict) and (not keys or source.random() < 0.3):
        node[source.choice(_KEYS)] = _value(source)
        return
    if not keys:
        return
    key = source.choice(keys)
    if isinstance(node[key], (dict, list)) and source.random() < 0.7:
        _mutate(source, node[key])
    else:
        node[key] = _value(source)


def _value(source: random.Random, depth: int = 0) -> Any:
    drawn = source.random()
    if depth > 3 or drawn < 0.6:
        return copy.copy(source.choice(_ATOMS))
    if drawn < 0.8:
        return [_value(source, depth + 1) for _ in range(source.randint(0, 3))]
    return {source.choice(_KEYS): _value(source, depth + 1) for _ in range(source.randint(0, 4))}


def _spoilt(source: random.Random, body: bytes) -> bytes:
    drawn = source.random()
    if drawn < 0.05:
        return body[: source.randint(0, len(body))]
    if drawn < 0.1:
        return bytes(source.choices(b"\x00\xff[{9", k=source.randint(0, 500)))
    return body


def _headers(source: random.Random, length: int) -> dict[str, str]:
    headers = {}
    if source.random() < 0.1:
        headers["Inference-Header-Content-Length"] = source.choice([*_LENGTHS, str(length), str(length + 1)])
    if source.random() < 0.03:
        headers["Content-Encoding"] = source.choice(_CODINGS)
    return headers
