"""Answers in OpenAI's shape: one object with every choice, or a chunk for each piece of each choice.

Text that a replica has not released yet makes no chunk. Tokens of a prompt count once, however many choices it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.gateway.composer import FINAL, STREAM_ID
from serverless_triton.scheduler.gateway.notices import receipt_header
from serverless_triton.scheduler.gateway.openai.requests import Asked
from serverless_triton.scheduler.gateway.tensors import Tensor, read_outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one response says. `finish_reason` is there on a choice's last."""

    stream: str
    text: str = field(repr=False)
    input_tokens: int
    output_tokens: int
    finish_reason: str | None
    headers: Mapping[str, str] = field(default_factory=dict)  # of an answer that begins with it


def read_piece(response: pb.ModelInferResponse) -> Piece:
    """Of a response with the outputs that `Asked.infer_requests` lists."""
    outputs = read_outputs(response)
    final = response.parameters[FINAL].bool_param
    return Piece(
        stream=response.parameters[STREAM_ID].string_param,
        text=_text(outputs["text_output"]),
        input_tokens=int(outputs["num_input_tokens"].numbers()[0]),
        output_tokens=int(outputs["num_output_tokens"].numbers()[0]),
        finish_reason=_text(outputs["finish_reason"]) if final else None,
        headers=receipt_header(response),
    )


def _text(tensor: Tensor) -> str:
    return b"".join(tensor.strings()).decode(errors="replace")


class Answer:
    """One request's answer. Give it every piece of every choice."""

    def __init__(self, asked: Asked, *, id: str, created_unix_s: int) -> None:  # noqa: A002 - OpenAI's word
        self.id = f"{_ID_PREFIXES[asked.kind]}-{id}"
        self._asked = asked
        self._created_unix_s = created_unix_s
        count = len(asked.prompts) * asked.choices_per_prompt
        self._input_tokens = [0] * count
        self._output_tokens = [0] * count

    def whole(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """From all pieces of each choice, in order."""
        choices = []
        for index, said in enumerate(pieces):
            for piece in said:
                self._count(index, piece)
            choices.append(self._choice(index, "".join(piece.text for piece in said), said[-1].finish_reason))
        kind = "text_completion" if self._asked.kind == "completion" else "chat.completion"
        return {**self._head(kind), "choices": choices, "usage": self._usage()}

    def begin(self) -> list[dict[str, Any]]:
        """What comes before any text: who is speaking, in a chat."""
        if self._asked.kind == "completion":
            return []
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(index, delta, None) for index in range(len(self._input_tokens))]

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Of one piece: its text, and the end of its choice, which a chat tells apart."""
        self._count(index, piece)
        if self._asked.kind == "completion":
            silent = not piece.text and piece.finish_reason is None
            return [] if silent else [self._chunk(index, piece.text, piece.finish_reason)]
        said = [self._chunk(index, {"content": piece.text}, None)] if piece.text else []
        return [*said, self._chunk(index, {}, piece.finish_reason)] if piece.finish_reason is not None else said

    def end(self) -> list[dict[str, Any]]:
        """The chunk with the whole request's usage, where it was asked for."""
        return [{**self._chunk_head(), "choices": [], "usage": self._usage()}] if self._asked.include_usage else []

    def _count(self, index: int, piece: Piece) -> None:
        self._input_tokens[index] = piece.input_tokens
        self._output_tokens[index] += piece.output_tokens

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created_unix_s, "model": self._asked.model}

    def _chunk_head(self) -> dict[str, Any]:
        return self._head("text_completion" if self._asked.kind == "completion" else "chat.completion.chunk")

    def _choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        said: dict[str, Any] = {"text": text}
        if self._asked.kind == "chat":
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return {"index": index, **said, "logprobs": None, "finish_reason": finish_reason}

    def _chunk(self, index: int, said: str | dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        name = "text" if self._asked.kind == "completion" else "delta"
        choice = {"index": index, name: said, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self._asked.include_usage else {}
        return {**self._chunk_head(), "choices": [choice], **usage}

    def _usage(self) -> dict[str, int]:
        prompt, completion = sum(self._input_tokens[:: self._asked.choices_per_prompt]), sum(self._output_tokens)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


_ID_PREFIXES = {"completion": "cmpl", "chat": "chatcmpl"}
