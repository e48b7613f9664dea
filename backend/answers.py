"""What a client of Triton itself hears, in vllm_backend's convention: pieces or one text, and the outputs it asked for.

A gateway wants the token state instead, which `triton_tensors.py` makes, and does this for its own clients. NumPy and
the standard library only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from serverless_triton.backend.messages import Tokens
from serverless_triton.backend.triton_tensors import Array, Arrays, TensorOf, flag_of, string_of, text_array

_RETURNS = {
    "return_finish_reason": "finish_reason",
    "return_num_input_tokens": "num_input_tokens",
    "return_num_output_tokens": "num_output_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What was asked for. `prompt` stands before the text, "" unless wanted."""

    whole: bool  # one response with everything, not one per message
    prompt: str = field(repr=False)
    outputs: frozenset[str]


def read_form(tensor: TensorOf, listed: Collection[str], every: Collection[str]) -> AnswerForm:
    """`listed` are the outputs that Triton says are requested, `every` those of the model: all listed means none were.

    Raises ValueError.
    """
    stream = flag_of("stream", tensor) or False
    excluded = flag_of("exclude_input_in_output", tensor)
    if stream and excluded is False:
        raise ValueError("When streaming, `exclude_input_in_output` = False is not allowed.")
    prepends = not stream and not excluded
    return AnswerForm(
        whole=not stream,
        prompt=(string_of("text_input", tensor) or "") if prepends else "",
        outputs=_outputs(tensor, frozenset(listed), frozenset(every)),
    )


def _outputs(tensor: TensorOf, listed: frozenset[str], every: frozenset[str]) -> frozenset[str]:
    if listed and listed != every:
        return listed
    return frozenset({"text_output"} | {output for flag, output in _RETURNS.items() if flag_of(flag, tensor)})


class Answer:
    """One client's view of one request. Holds text back only for a client that wants it whole."""

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._texts = [form.prompt]
        self._output_ids: list[int] = []
        self._prompt_ids: list[int] = []

    def arrays(self, message: Tokens) -> Arrays | None:
        """The response to send, if there is one: heartbeats have none, and a whole text has one when it is complete."""
        self._prompt_ids = message.prompt_ids or self._prompt_ids
        final = message.finish_reason is not None
        if not self._form.whole:
            silent = not (message.output_ids or message.text or final)
            return None if silent else self._made_of(message, message.text, message.output_ids)
        self._texts.append(message.text)
        self._output_ids += message.output_ids
        return self._made_of(message, "".join(self._texts), self._output_ids) if final else None

    def _made_of(self, message: Tokens, text: str, output_ids: list[int]) -> Arrays:
        arrays: Mapping[str, Array] = {
            "text_output": text_array(text),
            "finish_reason": text_array(str(message.finish_reason)),  # "None" until the last, as vLLM has it
            "num_input_tokens": np.array([message.num_input_tokens], dtype=np.uint32),
            "num_output_tokens": np.array([len(output_ids)], dtype=np.uint32),
            "output_ids": np.array(output_ids, dtype=np.int32),
            "prompt_ids": np.array(self._prompt_ids, dtype=np.int32),
        }
        wanted = [(name, array) for name, array in arrays.items() if name in self._form.outputs]
        return wanted if message.token_state is None else [*wanted, ("token_state", text_array(message.token_state))]
