"""What a client of Triton itself hears: vllm_backend's convention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serverless_triton.backend.answers import Answer, read_form
from serverless_triton.backend.messages import Tokens

EVERY = ("text_output", "finish_reason", "num_input_tokens", "num_output_tokens", "output_ids", "attempt")


def tensors(text: str = "Hi", **flags: bool) -> dict[str, Any]:
    given: dict[str, Any] = {name: np.array([value]) for name, value in flags.items()}
    return {**given, "text_input": np.array([text.encode()], dtype=np.object_)}


def answer(listed: tuple[str, ...] = EVERY, **flags: bool) -> Answer:
    return Answer(read_form(tensors(**flags).get, listed, EVERY))


def message(first_position: int, text: str, finish_reason: str | None = None, *output_ids: int) -> Tokens:
    return Tokens(
        request=1,
        first_position=first_position,
        output_ids=list(output_ids),
        text=text,
        num_input_tokens=2,
        finish_reason=finish_reason,
    )


PIECES = (message(0, " the", None, 5), message(1, "", None), message(1, "re", "stop", 6, 7))


def heard(client: Answer) -> list[dict[str, Any] | None]:
    responses = [client.arrays(piece) for piece in PIECES]
    return [None if arrays is None else {name: array.tolist() for name, array in arrays} for arrays in responses]


def test_without_stream_there_is_one_response_with_the_prompt_before_the_text():
    assert heard(answer()) == [None, None, {"text_output": [b"Hi there"]}]


def test_the_prompt_is_left_out_where_it_is_excluded():
    assert heard(answer(exclude_input_in_output=True))[-1] == {"text_output": [b" there"]}


def test_a_stream_comes_in_pieces_without_the_prompt_and_without_heartbeats():
    assert heard(answer(stream=True)) == [{"text_output": [b" the"]}, None, {"text_output": [b"re"]}]


def test_what_is_to_be_returned_comes_with_every_piece():
    flags = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
    first, _, last = heard(answer(stream=True, **dict.fromkeys(flags, True)))
    counts = {"num_input_tokens": [2], "num_output_tokens": [1]}
    assert first == {"text_output": [b" the"], "finish_reason": [b"None"], **counts}
    assert last == {**counts, "text_output": [b"re"], "finish_reason": [b"stop"], "num_output_tokens": [2]}


def test_a_whole_answer_counts_all_its_tokens():
    assert heard(answer(return_num_output_tokens=True))[-1] == {"text_output": [b"Hi there"], "num_output_tokens": [3]}


def test_outputs_that_the_client_lists_are_what_it_gets():
    assert heard(answer(("output_ids",)))[-1] == {"output_ids": [5, 6, 7]}


def test_a_stream_cannot_repeat_its_prompt():
    with pytest.raises(ValueError, match="When streaming, `exclude_input_in_output` = False is not allowed"):
        answer(stream=True, exclude_input_in_output=False)


def test_a_flag_is_one_value():
    wrong = {"text_input": np.array([b"Hi"], dtype=np.object_), "stream": np.array([True, False])}
    with pytest.raises(ValueError, match="'stream' has 2 elements"):
        read_form(wrong.get, EVERY, EVERY)


def test_token_ids_have_no_text_to_repeat():
    only_ids = {"input_ids": np.array([1, 2], dtype=np.int32)}
    client = Answer(read_form(only_ids.get, EVERY, EVERY))
    assert heard(client)[-1] == {"text_output": [b" there"]}


def test_a_frozen_stream_ends_with_its_state_whatever_was_asked_for():
    frozen = Tokens(
        request=1,
        first_position=0,
        output_ids=[],
        text="",
        num_input_tokens=2,
        finish_reason="frozen",
        token_state="{}",
    )
    arrays = dict(answer(stream=True).arrays(frozen) or ())
    assert arrays["token_state"].tolist() == [b"{}"]
