"""Between Triton's tensors and the node's messages, for the stub. NumPy and the standard library only.

The tensors follow Triton's vllm_backend; `messages`, `input_ids`, `resume_token_ids`, `output_ids`, `prompt_ids`,
`attempt`, `first_position`, `held_tokens`, `total_tokens` and `token_state` are ours. The 2.51 stub cannot set response
parameters, so token state travels as tensors. What a gateway hears is made here, what other clients do in `answers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from serverless_triton.backend.client_json import parse_json_object, parse_messages
from serverless_triton.backend.messages import TRACEPARENT, CatchUp, CaughtUp, Generate, Position, Tokens

Array = npt.NDArray[Any]
Arrays = list[tuple[str, Array]]
TensorOf = Callable[[str], "Array | None"]  # an input's array by its name, None where the request has none
# Request parameters that the stub itself reads; any other one is a sampling parameter, as in Triton's generate
# extension. That also repeats a request's `id` as a parameter.
_OWN_PARAMETERS = {
    "attempt", "token_state", "deadline_unix_s", "reservation", "start_position", "freeze", TRACEPARENT,
    "triton_enable_empty_final_response", "priority", "timeout", "sequence_id", "id",
}  # fmt: skip


def read_request(request: int, tensor: TensorOf, parameters: dict[str, Any]) -> Generate | CatchUp:
    """The message for one Triton request; with a `reservation` and the parameter `max_tokens` 0 a round of a catch-up.

    Raises ValueError naming the tensor or parameter that is wrong.
    """
    text, chat = string_of("text_input", tensor), string_of("messages", tensor)
    input_ids = _token_ids("input_ids", tensor)
    if [text, input_ids, chat].count(None) != 2:
        raise ValueError("give exactly one of the inputs 'text_input', 'input_ids' and 'messages'")
    if flag_of("return_logprobs", tensor):
        raise ValueError("input 'return_logprobs' is true, and no engine here returns log probabilities; leave it out")
    message = Generate(
        request=request,
        attempt=_count("attempt", parameters),
        text=text,
        input_ids=input_ids,
        messages=None if chat is None else parse_messages(chat, "input 'messages'"),
        resume_token_ids=_token_ids("resume_token_ids", tensor) or [],
        sampling_parameters=_sampling_parameters(tensor, parameters),
        reservation=_name("reservation", parameters),
        deadline_unix_s=_count("deadline_unix_s", parameters) or None,
        traceparent=_traceparent(parameters),
    )
    is_round = message.reservation is not None and _is_zero(parameters.get("max_tokens"))
    return _as_round(message, _count("start_position", parameters)) if is_round else message


def _sampling_parameters(tensor: TensorOf, parameters: dict[str, Any]) -> dict[str, Any]:
    sampling = {name: value for name, value in parameters.items() if name not in _OWN_PARAMETERS}
    text = string_of("sampling_parameters", tensor)
    return sampling | parse_json_object(text or "{}", "input 'sampling_parameters'")


def _as_round(message: Generate, start_position: int) -> CatchUp:
    """Its sampling parameters are the stream's own, so that the engine knows it again when it comes."""
    if message.messages is not None:
        raise ValueError("a round of a catch-up takes no 'messages'; send the 'prompt_ids' that the stream began with")
    sampling = message.sampling_parameters
    assert message.reservation is not None
    return CatchUp(
        request=message.request,
        reservation=message.reservation,
        attempt=message.attempt,
        start_position=start_position,
        text=message.text,
        input_ids=message.input_ids,
        resume_token_ids=message.resume_token_ids,
        sampling_parameters={n: v for n, v in sampling.items() if n != "max_tokens" or not _is_zero(v)},
    )


def _is_zero(value: object) -> bool:
    return type(value) is int and value == 0


def wants_token_state(parameters: dict[str, Any]) -> bool:
    """Whether a gateway asks: it takes failures as tensors too, since Triton's own error path can crash the server."""
    return parameters.get("token_state") is True


def stream_to_freeze(parameters: dict[str, Any]) -> str | None:
    """The Triton request id of the stream that this request wants to end, None for any other request.

    Raises ValueError.
    """
    return _name("freeze", parameters)


def _name(parameter: str, parameters: dict[str, Any]) -> str | None:
    value = parameters.get(parameter)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME:
        raise ValueError(f"parameter '{parameter}' must be the id of a stream, 1 to {_LONGEST_NAME} characters")
    return value


def _traceparent(parameters: dict[str, Any]) -> str | None:
    """What is none names nothing, and is no reason to refuse a request."""
    value = parameters.get(TRACEPARENT)
    return value if isinstance(value, str) and len(value) <= _LONGEST_NAME else None


def failure_array(code: str, message: str) -> Array:
    """The output `failure`."""
    return np.array([code.encode(), message.encode()], dtype=np.object_)


def _count(parameter: str, parameters: dict[str, Any]) -> int:
    value = parameters.get(parameter, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"parameter '{parameter}' is {value!r}; use a whole number from 0")
    return value


def flag_of(name: str, tensor: TensorOf) -> bool | None:
    """An input's truth, None where it was not given. Raises ValueError."""
    array = tensor(name)
    if array is None:
        return None
    if array.size != 1:
        raise ValueError(f"input '{name}' has {array.size} elements; give exactly one")
    return bool(array.reshape(-1)[0])


def string_of(name: str, tensor: TensorOf) -> str | None:
    """An input's text, None where it was not given. Raises ValueError."""
    array = tensor(name)
    if array is None:
        return None
    if array.size != 1:
        raise ValueError(f"input '{name}' has {array.size} elements; give exactly one string")
    value = array.reshape(-1)[0]
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise ValueError(f"input '{name}' is not UTF-8 at byte {error.start}") from error


def _token_ids(name: str, tensor: TensorOf) -> list[int] | None:
    array = tensor(name)
    return None if array is None else [int(i) for i in array.reshape(-1)]


def response_arrays(message: Tokens | Position | CaughtUp, attempt: int, next_position: int) -> Arrays:
    """Every output tensor of one response to a gateway, by name. `next_position`: where the next token will belong."""
    if isinstance(message, Tokens):
        return _token_arrays(message, attempt)
    arrays = _state_arrays("", [], next_position, attempt)
    arrays.append(("held_tokens", np.array([message.held_tokens], dtype=np.int32)))
    if isinstance(message, Position):
        arrays.append(("total_tokens", np.array([message.total_tokens], dtype=np.int32)))
    else:
        arrays.append(("finish_reason", text_array("caught_up")))
    return arrays


def text_array(text: str) -> Array:
    """A STRING tensor of one element."""
    return np.array([text.encode()], dtype=np.object_)


def _state_arrays(text: str, output_ids: list[int], first_position: int, attempt: int) -> Arrays:
    return [
        ("text_output", text_array(text)),
        ("output_ids", np.array(output_ids, dtype=np.int32)),
        ("first_position", np.array([first_position], dtype=np.int32)),
        ("attempt", np.array([attempt], dtype=np.int32)),
    ]


def _token_arrays(message: Tokens, attempt: int) -> Arrays:
    arrays = [
        *_state_arrays(message.text, message.output_ids, message.first_position, attempt),
        ("num_input_tokens", np.array([message.num_input_tokens], dtype=np.uint32)),
        ("num_output_tokens", np.array([message.first_position + len(message.output_ids)], dtype=np.uint32)),
    ]
    if message.prompt_ids is not None:
        arrays.append(("prompt_ids", np.array(message.prompt_ids, dtype=np.int32)))
    if message.finish_reason is not None:
        arrays.append(("finish_reason", text_array(message.finish_reason)))
    if message.token_state is not None:
        arrays.append(("token_state", text_array(message.token_state)))
    return arrays


_LONGEST_NAME = 128
