"""What goes back to a client: one upstream message, or a whole stream's, in the form that client asked for.

Follows Triton's vllm_backend: streamed text comes as pieces, whole text at once; `finish_reason` is "None" until the
last piece; `num_output_tokens` counts the piece's own. On a stream every response says whether it is the last; there is
never an empty one after it, whatever a client asks for, since the last one is always known when it goes out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.admission import Outlook
from serverless_triton.scheduler.gateway.notices import tell_outlook
from serverless_triton.scheduler.gateway.request import GenerationRequest
from serverless_triton.scheduler.gateway.tensors import pack, raw_outputs, split_strings
from serverless_triton.scheduler.gateway.upstream import RequestFailed
from serverless_triton.scheduler.journal import StreamJournal

FINAL = "triton_final_response"
STREAM_ID = "stream_id"
_INT32 = struct.Struct("<i")


class MalformedUpdate(Exception):
    """A replica's response does not carry the token state that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUpdate:
    """One response of a replica, by value."""

    attempt: int
    first_position: int
    output_ids: tuple[int, ...]
    text: bytes
    prompt_ids: tuple[int, ...]
    num_input_tokens: int | None
    finish_reason: str | None

    @property
    def empty(self) -> bool:
        """A heartbeat: it says that the replica lives, and nothing else."""
        return not self.output_ids and not self.text and self.finish_reason is None


def read_update(response: pb.ModelInferResponse) -> TokenUpdate | None:
    """None for the empty final response. Raises MalformedUpdate, and RequestFailed."""
    if not response.outputs:
        return None
    try:
        raw = raw_outputs(response)
        if "failure" in raw:
            code, message = (part.decode() for part in split_strings(raw["failure"]))
            raise RequestFailed(code, message)
        return _read_update(raw)
    except (KeyError, ValueError, struct.error) as error:
        raise MalformedUpdate(f"a response without token state: {type(error).__name__} {error}") from error


def _read_update(raw: Mapping[str, bytes]) -> TokenUpdate:
    reason = raw.get("finish_reason")
    tokens = raw.get("num_input_tokens")
    return TokenUpdate(
        attempt=_integer(raw["attempt"]),
        first_position=_integer(raw["first_position"]),
        output_ids=_integers(raw["output_ids"]),
        text=b"".join(split_strings(raw["text_output"])),
        prompt_ids=_integers(raw.get("prompt_ids", b"")),
        num_input_tokens=None if tokens is None else _integer(tokens),
        finish_reason=b"".join(split_strings(reason)).decode() or None if reason else None,
    )


def _integer(raw: bytes) -> int:
    (value,) = _INT32.unpack(raw)
    return int(value)


def _integers(raw: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(raw) // 4}i", raw)


class Composer:
    """One client's view of a stream. Holds text back only for a client that wants it whole."""

    def __init__(self, request: GenerationRequest, journal: StreamJournal) -> None:
        self._request = request
        self._journal = journal
        self._held: list[bytes] = []
        self._names = [name for name in sorted(request.outputs, key=_rank) if name in _DATATYPES]
        self._form = self._make_form()

    def _make_form(self) -> pb.ModelInferResponse:
        """What all its responses have in common: everything but their contents, for outputs of one element."""
        request = self._request
        form = pb.ModelInferResponse(model_name=request.model, model_version=request.version, id=request.client_id)
        form.parameters[STREAM_ID].string_param = self._journal.stream
        if not request.unary:
            form.parameters[FINAL].bool_param = False
        for name in self._names:
            form.outputs.add(name=name, datatype=_DATATYPES[name], shape=[1])
        return form

    def compose(self, update: TokenUpdate) -> pb.ModelInferResponse | None:
        """The response to send for an accepted update, if there is one."""
        final = update.finish_reason is not None
        if not self._request.whole:
            return None if update.empty else self._response(update, update.text, update.output_ids)
        self._held.append(update.text)
        if not final:
            return None
        text = self._request.prompt_text + b"".join(self._held)
        return self._response(update, text, tuple(self._journal.output_ids))

    def announce(self, outlook: Outlook) -> pb.ModelInferResponse:
        """What the stream's wait looks like, in a response before all others that has no outputs."""
        request = self._request
        response = pb.ModelInferResponse(model_name=request.model, model_version=request.version, id=request.client_id)
        response.parameters[STREAM_ID].string_param = self._journal.stream
        response.parameters[FINAL].bool_param = False
        tell_outlook(response, outlook)
        return response

    def _response(self, update: TokenUpdate, text: bytes, output_ids: tuple[int, ...]) -> pb.ModelInferResponse:
        response = pb.ModelInferResponse()
        response.CopyFrom(self._form)
        if update.finish_reason is not None and not self._request.unary:
            response.parameters[FINAL].bool_param = True
        for index, name in enumerate(self._names):
            values = self._values(name, update, text, output_ids)
            if len(values) != 1:
                response.outputs[index].shape[0] = len(values)
            response.raw_output_contents.append(pack(_DATATYPES[name], values))
        return response

    def _values(self, name: str, update: TokenUpdate, text: bytes, output_ids: tuple[int, ...]) -> Sequence[Any]:
        if name == "text_output":
            return (text,)
        if name == "output_ids":
            return output_ids
        if name == "finish_reason":
            return (str(update.finish_reason).encode(),)
        if name == "prompt_ids":
            return self._journal.prompt_ids
        return (self._journal.num_input_tokens if name == "num_input_tokens" else len(output_ids),)


_DATATYPES = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
    "output_ids": "INT32",
    "prompt_ids": "INT32",
}


def _rank(name: str) -> tuple[bool, str]:
    return name != "text_output", name
