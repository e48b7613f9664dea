"""Triton's tensors and the node's messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serverless_triton.backend.messages import Generate, Tokens
from serverless_triton.backend.triton_tensors import read_request, response_arrays


def read(parameters: dict[str, Any] | None = None, **tensors: Any) -> Generate:
    return read_request(7, tensors.get, parameters or {})


def strings(*values: bytes) -> Any:
    return np.array(values, dtype=np.object_)


def test_a_text_with_its_sampling_parameters():
    message = read(text_input=strings("grüße".encode()), sampling_parameters=strings(b'{"max_tokens": 3}'))
    assert message == Generate(request=7, text="grüße", sampling_parameters={"max_tokens": 3})


def test_request_parameters_are_sampling_parameters_unless_they_are_tritons_or_ours():
    message = read({"top_k": 5, "attempt": 2, "token_state": True, "timeout": 9}, text_input=strings(b"x"))
    assert (message.sampling_parameters, message.attempt) == ({"top_k": 5}, 2)


def test_the_tensor_wins_over_request_parameters():
    message = read({"top_k": 5}, text_input=strings(b"x"), sampling_parameters=strings(b'{"top_k": 6}'))
    assert message.sampling_parameters == {"top_k": 6}


def test_token_ids_and_a_past_to_go_on_from():
    ids = np.array([1, 2], dtype=np.int32)
    message = read(input_ids=ids, resume_token_ids=np.array([3], dtype=np.int32))
    assert (message.input_ids, message.resume_token_ids, message.text) == ([1, 2], [3], None)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "exactly one of"),
        ({"text_input": strings(b"a"), "input_ids": np.array([1])}, "exactly one of"),
        ({"text_input": strings(b"a", b"b")}, "'text_input' has 2 elements"),
        ({"text_input": strings(b"\xff")}, "'text_input' is not UTF-8 at byte 0"),
        ({"text_input": strings(b"a"), "sampling_parameters": strings(b"{")}, "'sampling_parameters' is not JSON"),
        ({"text_input": strings(b"a"), "sampling_parameters": strings(b"[]")}, "must be a JSON object"),
    ],
)
def test_wrong_inputs_are_named(tensors: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        read(**tensors)


@pytest.mark.parametrize("attempt", [-1, "1", True, 1.5])
def test_an_attempt_is_a_whole_number(attempt: object):
    with pytest.raises(ValueError, match="'attempt'"):
        read({"attempt": attempt}, text_input=strings(b"a"))


def test_a_response_says_where_its_tokens_belong():
    message = Tokens(
        request=7, first_position=4, output_ids=[8, 9], text="ab", num_input_tokens=3, finish_reason="stop"
    )
    arrays = dict(response_arrays(message, attempt=2))
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "text_output": [b"ab"],
        "output_ids": [8, 9],
        "first_position": [4],
        "attempt": [2],
        "num_input_tokens": [3],
        "num_output_tokens": [6],
        "finish_reason": [b"stop"],
    }
    assert arrays["output_ids"].dtype == np.int32
