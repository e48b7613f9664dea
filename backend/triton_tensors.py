"""Between Triton's tensors and the node's messages, for the stub. NumPy and the standard library only.

The tensors follow Triton's vllm_backend; `input_ids`, `resume_token_ids`, `output_ids`, `prompt_ids`, `attempt` and
`first_position` are ours. The 2.51 stub cannot set response parameters, so token state travels as tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from serverless_triton.backend.messages import Generate, Tokens, parse_json_object

Array = npt.NDArray[Any]
# Request parameters that the stub itself reads; any other one is a sampling parameter, as in Triton's generate
# extension.
_OWN_PARAMETERS = {"attempt", "token_state", "triton_enable_empty_final_response", "priority", "timeout", "sequence_id"}


def read_request(request: int, tensor: Callable[[str], Array | None], parameters: dict[str, Any]) -> Generate:
    """The message for one Triton request; `tensor(name)` gives an input's array or None.

    Raises ValueError naming the tensor or parameter that is wrong.
    """
    text, input_ids = _string("text_input", tensor), _token_ids("input_ids", tensor)
    if (text is None) == (input_ids is None):
        raise ValueError("give exactly one of the inputs 'text_input' and 'input_ids'")
    sampling = {name: value for name, value in parameters.items() if name not in _OWN_PARAMETERS}
    sampling |= parse_json_object(_string("sampling_parameters", tensor) or "{}", "input 'sampling_parameters'")
    return Generate(
        request=request,
        attempt=_attempt(parameters.get("attempt", 0)),
        text=text,
        input_ids=input_ids,
        resume_token_ids=_token_ids("resume_token_ids", tensor) or [],
        sampling_parameters=sampling,
    )


def wants_token_state(parameters: dict[str, Any]) -> bool:
    """Whether a gateway asks: it takes failures as tensors too, since Triton's own error path can crash the server."""
    return parameters.get("token_state") is True


def failure_array(code: str, message: str) -> Array:
    """The output `failure`."""
    return np.array([code.encode(), message.encode()], dtype=np.object_)


def _attempt(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"parameter 'attempt' is {value!r}; use a whole number from 0")
    return value


def _string(name: str, tensor: Callable[[str], Array | None]) -> str | None:
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


def _token_ids(name: str, tensor: Callable[[str], Array | None]) -> list[int] | None:
    array = tensor(name)
    return None if array is None else [int(i) for i in array.reshape(-1)]


def response_arrays(message: Tokens, attempt: int) -> list[tuple[str, Array]]:
    """Every output tensor of one response, by name."""
    arrays: list[tuple[str, Array]] = [
        ("text_output", np.array([message.text.encode()], dtype=np.object_)),
        ("output_ids", np.array(message.output_ids, dtype=np.int32)),
        ("first_position", np.array([message.first_position], dtype=np.int32)),
        ("attempt", np.array([attempt], dtype=np.int32)),
        ("num_input_tokens", np.array([message.num_input_tokens], dtype=np.uint32)),
        ("num_output_tokens", np.array([message.first_position + len(message.output_ids)], dtype=np.uint32)),
    ]
    if message.prompt_ids is not None:
        arrays.append(("prompt_ids", np.array(message.prompt_ids, dtype=np.int32)))
    if message.finish_reason is not None:
        arrays.append(("finish_reason", np.array([message.finish_reason.encode()], dtype=np.object_)))
    return arrays
