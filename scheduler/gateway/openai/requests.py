"""What a client of `/v1/completions` or `/v1/chat/completions` asked for, parsed once and strictly.

A request becomes one KServe request for each choice, with vllm_backend's tensors. What OpenAI documents and this server
does not do is refused unless its value asks for nothing; a member that nobody knows is refused too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.json_form import parse_json
from serverless_triton.scheduler.gateway.openai.members import (
    Members,
    as_whole,
    flag,
    items,
    mapping,
    number,
    text,
    whole,
)
from serverless_triton.scheduler.gateway.openai.messages import read_messages
from serverless_triton.scheduler.gateway.tensors import Tensor, add_input, number_tensor, string_tensor

Kind = Literal["completion", "chat"]

OUTPUTS = ("text_output", "finish_reason", "num_input_tokens", "num_output_tokens")
MOST_CHOICES = 128
_MOST_TOKENS = 2**31 - 1
_MOST_STOPS = 64
_MOST_STOP_IDS = 1024
_MOST_PROMPT_BYTES = 64 << 20  # of all choices together: each one's request carries its prompt
_SEED_MASK = 2**53 - 1  # a seed is any whole number; what the backend takes, exact in JSON
_COMPLETION_TOKENS = 16  # where a completion has no max_tokens, as in OpenAI's documentation; a chat has all the room

# What this server does not do: member → the values that ask for nothing, beside null.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "store": (False,),
}
_REFUSED_COMPLETION: dict[str, tuple[Any, ...]] = {"echo": (False,), "suffix": ("",), "logprobs": (), "best_of": (1,)}
_REFUSED_CHAT: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
# Of use to OpenAI's own service alone.
_IGNORED = (
    "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier",
    "parallel_tool_calls",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A valid request. Holds prompts: never log it. `max_tokens` None means as many as the model has room for."""

    kind: Kind
    model: str
    prompts: tuple[Tensor, ...] = field(repr=False)
    choices_per_prompt: int
    max_tokens: int | None
    sampling: Mapping[str, Any] = field(repr=False)
    stream: bool
    include_usage: bool

    def infer_requests(self, room_tokens: int) -> list[pb.ModelInferRequest]:
        """One for each choice, in the order of their indices. `room_tokens` is what the model has room for."""
        return [
            self._infer_request(prompt, copy, self.max_tokens or room_tokens)
            for prompt in self.prompts
            for copy in range(self.choices_per_prompt)
        ]

    def _infer_request(self, prompt: Tensor, copy: int, max_tokens: int) -> pb.ModelInferRequest:
        """Copies of one prompt with one seed would say the same, so each has the next one."""
        request = pb.ModelInferRequest(model_name=self.model)
        sampling = {**self.sampling, "max_tokens": max_tokens}
        if "seed" in sampling:
            sampling["seed"] = (sampling["seed"] + copy) & _SEED_MASK
        add_input(request, prompt)
        add_input(request, number_tensor("stream", "BOOL", [self.stream]))
        add_input(request, number_tensor("exclude_input_in_output", "BOOL", [True]))
        add_input(request, string_tensor("sampling_parameters", json.dumps(sampling).encode()))
        for name in OUTPUTS:
            request.outputs.add(name=name)
        return request


def read_completion(body: bytes) -> Asked:
    """Raises InvalidRequest, mostly as InvalidParameter."""
    members = _members(body)
    prompts = _prompts(members)
    max_tokens = members.take("max_tokens", whole(1, _MOST_TOKENS), "a whole number from 1", _COMPLETION_TOKENS)
    members.refuse(_REFUSED_COMPLETION)
    return _asked("completion", members, prompts, max_tokens)


def read_chat(body: bytes) -> Asked:
    """Raises InvalidRequest, mostly as InvalidParameter."""
    members = _members(body)
    messages = string_tensor("messages", json.dumps(read_messages(members)).encode())
    limits = {
        members.take(name, whole(1, _MOST_TOKENS), "a whole number from 1", 0)
        for name in ("max_completion_tokens", "max_tokens")
    } - {0}
    if len(limits) > 1:
        raise members.wrong("max_tokens", "and 'max_completion_tokens' mean the same; give one of them")
    members.refuse(_REFUSED_CHAT)
    return _asked("chat", members, (messages,), max(limits, default=None))


def _members(body: bytes) -> Members:
    value = parse_json(body)
    if not isinstance(value, dict):
        raise InvalidRequest("the request's body must be a JSON object")
    return Members(value)


def _asked(kind: Kind, members: Members, prompts: tuple[Tensor, ...], max_tokens: int | None) -> Asked:
    """What both have in common."""
    most = MOST_CHOICES // len(prompts)
    stream = members.take("stream", flag, "true or false", False)
    asked = Asked(
        kind=kind,
        model=members.require("model", text, "a model's name"),
        prompts=prompts,
        choices_per_prompt=members.take("n", whole(1, most), f"a whole number from 1 to {most}", 1),
        max_tokens=max_tokens,
        sampling=_sampling(members),
        stream=stream,
        include_usage=_include_usage(members, stream),
    )
    if sum(len(prompt.raw) for prompt in prompts) * asked.choices_per_prompt > _MOST_PROMPT_BYTES:
        raise members.wrong("n", f"would repeat the prompts to more than {_MOST_PROMPT_BYTES} bytes; ask for fewer")
    members.refuse(_REFUSED)
    members.ignore(*_IGNORED)
    members.end()
    return asked


def _sampling(members: Members) -> dict[str, Any]:
    """OpenAI's defaults, which sample, not the backend's, which is greedy. The last four of `said` are vLLM's."""
    a_count = f"a whole number up to {_MOST_TOKENS}"
    said = {
        "seed": members.take("seed", _seed, "a whole number of at most 64 bits", None),
        "stop": members.take("stop", _stops, f"a string or a list of at most {_MOST_STOPS}, none empty", None),
        "top_k": members.take("top_k", whole(-1, _MOST_TOKENS), f"{a_count}, or -1", None),
        "min_tokens": members.take("min_tokens", whole(0, _MOST_TOKENS), a_count, None),
        "stop_token_ids": members.take("stop_token_ids", _ids, f"a list of at most {_MOST_STOP_IDS} token ids", None),
        "ignore_eos": members.take("ignore_eos", flag, "true or false", None),
    }
    return {
        "temperature": members.take("temperature", number(0, 2), "a number from 0 to 2", 1.0),
        "top_p": members.take("top_p", number(0, 1, above_low=True), "a number above 0, up to 1", 1.0),
        **{name: value for name, value in said.items() if value not in (None, [])},
    }


def _seed(value: Any) -> int | None:
    seed = whole(-(2**63), 2**64 - 1)(value)
    return None if seed is None else seed & _SEED_MASK


def _stops(value: Any) -> list[str] | None:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > _MOST_STOPS or not all(text(stop) for stop in found):
        return None
    return found


def _ids(value: Any) -> list[int] | None:
    if not isinstance(value, list) or len(value) > _MOST_STOP_IDS:
        return None
    return _all_whole(value, whole(0, _MOST_TOKENS))


def _all_whole(values: list[Any], parse: Callable[[Any], int | None]) -> list[int] | None:
    found = [parse(value) for value in values]
    return None if None in found else [value for value in found if value is not None]


def _include_usage(members: Members, stream: bool) -> bool:
    options = members.take("stream_options", mapping, "an object", None)
    if options is None:
        return False
    if not stream:
        raise members.wrong("stream_options", "needs 'stream' to be true")
    inner = Members(options, "stream_options.")
    include = inner.take("include_usage", flag, "true or false", False)
    inner.ignore("include_obfuscation")
    inner.end()
    return include


def _prompts(members: Members) -> tuple[Tensor, ...]:
    """A text, token ids, or a list of one of them."""
    what = "a string, a list of token ids, or a list of those"
    value = members.require("prompt", lambda found: items(found) or text(found), what)
    several = value if isinstance(value, list) and as_whole(value[0]) is None else [value]
    if len(several) > MOST_CHOICES:
        raise members.wrong("prompt", f"holds {len(several)} prompts; at most {MOST_CHOICES} are taken")
    tensors = [_prompt(prompt) for prompt in several]
    found = tuple(tensor for tensor in tensors if tensor is not None)
    if len(found) < len(tensors):
        raise members.wrong("prompt", f"must be {what}", "invalid_type")
    return found


def _prompt(value: Any) -> Tensor | None:
    words = text(value)
    if words is not None:
        return string_tensor("text_input", words.encode())
    ids = _all_whole(items(value) or [], as_whole)
    if not ids:
        return None
    try:
        return number_tensor("input_ids", "INT32", ids)
    except struct.error:
        return None
