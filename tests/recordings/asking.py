"""Asks a server one call of the table, and writes its answer down in a form in which two servers can be compared.

Masked is what differs from run to run: text and ids that a model makes, counts, durations. Left out is what is the
gateway's own (`ADDED`) and what a server behind it sees of it (`PRIVATE`).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from yarl import URL

from serverless_triton.backend.messages import REPLICA_PARAMETER
from serverless_triton.scheduler.catalogue import PRIVATE_INPUTS, PRIVATE_OUTPUTS
from tests.recordings.calls import Answer, Call, GrpcCall, HttpCall

HEADER_LENGTH = "Inference-Header-Content-Length"
TIMEOUT_S = 20.0
ADDED = frozenset({"stream_id"})  # the gateway's name of a stream, beside what Triton answers
PRIVATE = PRIVATE_INPUTS | PRIVATE_OUTPUTS
_COUNTS = frozenset({"count", "ns", "last_inference", "inference_count", "execution_count"})
_OF_THE_MODEL = frozenset({"data", "output_ids", "prompt_ids", "num_input_tokens", "num_output_tokens", "text_output"})
_CHECKPOINT = frozenset({"checkpoint", "checkpoint_bytes", "kv_cache_bytes"})


class Asker:
    """Connections to one server."""

    def __init__(self, http: str, grpc_address: str) -> None:
        self._http = http
        self._session = aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        self._channel = grpc.aio.insecure_channel(grpc_address)

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._channel.close()

    async def ask(self, call: Call) -> Answer:
        """Raises what the connection does where the server does not answer at all."""
        answer = await (self._ask_http(call) if isinstance(call, HttpCall) else self._ask_grpc(call))
        found: Answer = comparable(answer)
        return found

    async def _ask_http(self, call: HttpCall) -> Answer:
        url = URL(f"http://{self._http}{call.path}", encoded=True)
        skipped = ("Accept-Encoding", "Content-Type")
        async with self._session.request(
            call.method, url, data=call.body or None, headers=call.headers, skip_auto_headers=skipped
        ) as response:
            answer: Answer = {"status": response.status}
            raw = await response.read()
            coding = response.headers.get("Content-Encoding")
            if coding:
                answer["coding"] = coding
                raw = zlib.decompress(raw, wbits=47)  # gzip or zlib, as its first bytes say
            if raw:
                answer |= _body(raw, response.headers)
                if "error" not in answer["body"]:  # some of Triton's errors are JSON labelled text/plain
                    answer["type"] = response.headers.get("Content-Type")
            return answer

    async def _ask_grpc(self, call: GrpcCall) -> Answer:
        messages: list[Any] = []
        try:
            messages.extend([_message(call, raw) async for raw in self._called(call)])
        except grpc.aio.AioRpcError as error:
            return {"code": error.code().name, "details": error.details(), "messages": messages}
        return {"code": "OK", "messages": messages}

    async def _called(self, call: GrpcCall) -> AsyncIterator[bytes]:
        """The raw messages that come back."""
        options: dict[str, Any] = {"timeout": TIMEOUT_S, "metadata": call.metadata}
        if call.streams:
            stream = self._channel.stream_stream(call.method, request_serializer=_serialized)
            async for raw in stream(_each(call.messages), **options):
                yield raw
        else:
            unary = self._channel.unary_unary(call.method, request_serializer=_serialized)
            yield await unary(call.messages[0], **options)


async def _each(messages: tuple[Message | bytes, ...]) -> AsyncIterator[Message | bytes]:
    for message in messages:
        yield message


def _serialized(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _message(call: GrpcCall, raw: bytes) -> Any:
    if call.answer is None:
        return raw.hex()
    return MessageToDict(
        call.answer.FromString(raw), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _body(raw: bytes, headers: Any) -> dict[str, Any]:
    if HEADER_LENGTH in headers:
        length = int(headers[HEADER_LENGTH])
        return {"body": json.loads(raw[:length]), "binary": len(raw) > length}
    if "event-stream" in headers.get("Content-Type", ""):
        events = [event for event in raw.decode().split("\n\n") if event]
        return {"body": [json.loads(event.removeprefix("data: ")) for event in events]}
    try:
        return {"body": json.loads(raw)}
    except ValueError:
        return {"body": raw.decode()}


def comparable(value: Any, key: str = "") -> Any:
    """With every mask on it."""
    if key in _COUNTS:
        return "<number>"
    if key in _OF_THE_MODEL:
        return _kinds(value)
    if key == "raw_output_contents":
        return ["<bytes>"] * len(value)
    if key == "binary_data_size":
        return "<size>"
    if key in _CHECKPOINT and isinstance(value, dict):
        return "<checkpoint>"
    if isinstance(value, dict):
        return _object({name: comparable(item, name) for name, item in value.items() if name not in ADDED})
    if isinstance(value, list):
        return _list(value, key)
    if key == "reason":
        return re.sub(r"^config\.pbtxt: .*", "config.pbtxt: <why>", value)  # a parser's words
    return value


def _object(value: dict[str, Any]) -> dict[str, Any]:
    value.pop(REPLICA_PARAMETER, None)
    if "outputs" in value and not value.get("parameters", True):
        del value["parameters"]  # what was in it was the gateway's own
    if "response_stats" in value:  # by a response's number in its stream
        value["response_stats"] = _merged(list(value["response_stats"].values()))
    return value


def _list(value: list[Any], key: str) -> list[Any]:
    found = [comparable(item) for item in value if not (isinstance(item, dict) and item.get("name") in PRIVATE)]
    if key in ("body", "messages"):
        found.sort(key=_request_id)  # the requests of one stream are answered side by side
        return _merged(found)  # an engine may say two tokens in one message
    return found


def _request_id(message: Any) -> str:
    return str(message.get("infer_response", {}).get("id", "")) if isinstance(message, dict) else ""


def _merged(items: list[Any]) -> list[Any]:
    return [item for number, item in enumerate(items) if number == 0 or item != items[number - 1]]


def _kinds(value: Any) -> Any:
    """What a model made, by kind; as many as there were where they are texts."""
    if isinstance(value, list):
        kinds = [_kinds(item) for item in value]
        return kinds if "<text>" in kinds else kinds[:1]
    return "<text>" if isinstance(value, str) else "<bool>" if isinstance(value, bool) else "<number>"
