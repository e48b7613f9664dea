"""Triton's tensors and the node's messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serverless_triton.backend.messages import CatchUp, CaughtUp, Generate, Position, Tokens
from serverless_triton.backend.triton_tensors import read_request, response_arrays, stream_to_freeze

NESTED = b'{"stop": ' + b"[" * 988 + b"]" * 988 + b"}"  # that some processes parse, and some don't


def read(parameters: dict[str, Any] | None = None, **tensors: Any) -> Generate | CatchUp:
    return read_request(7, tensors.get, parameters or {})


def strings(*values: bytes) -> Any:
    return np.array(values, dtype=np.object_)


def test_a_text_with_its_sampling_parameters():
    message = read(text_input=strings("grüße".encode()), sampling_parameters=strings(b'{"max_tokens": 3}'))
    assert message == Generate(request=7, text="grüße", sampling_parameters={"max_tokens": 3})


def test_request_parameters_are_sampling_parameters_unless_they_are_tritons_or_ours():
    message = read({"top_k": 5, "attempt": 2, "token_state": True, "timeout": 9}, text_input=strings(b"x"))
    assert (message.sampling_parameters, message.attempt) == ({"top_k": 5}, 2)


def test_a_deadline_comes_along_where_there_is_one():
    message = read({"deadline_unix_s": 1_800_000_000}, text_input=strings(b"x"))
    assert isinstance(message, Generate)
    assert (message.deadline_unix_s, message.sampling_parameters) == (1_800_000_000, {})
    without = read(text_input=strings(b"x"))
    assert isinstance(without, Generate)
    assert without.deadline_unix_s is None
    with pytest.raises(ValueError, match="'deadline_unix_s'"):
        read({"deadline_unix_s": "soon"}, text_input=strings(b"x"))


def test_the_id_that_triton_repeats_as_a_parameter_is_no_sampling_parameter():
    assert read({"id": "g1", "top_k": 5}, text_input=strings(b"x")).sampling_parameters == {"top_k": 5}


def test_the_tensor_wins_over_request_parameters():
    message = read({"top_k": 5}, text_input=strings(b"x"), sampling_parameters=strings(b'{"top_k": 6}'))
    assert message.sampling_parameters == {"top_k": 6}


def test_token_ids_and_a_past_to_go_on_from():
    ids = np.array([1, 2], dtype=np.int32)
    message = read(input_ids=ids, resume_token_ids=np.array([3], dtype=np.int32))
    assert isinstance(message, Generate)
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
        ({"text_input": strings(b"a"), "sampling_parameters": strings(NESTED)}, "nested too deeply; use at most 16"),
        ({"text_input": strings(b"a"), "return_logprobs": np.array([True])}, "'return_logprobs' is true"),
    ],
)
def test_wrong_inputs_are_named(tensors: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        read(**tensors)


@pytest.mark.parametrize("attempt", [-1, "1", True, 1.5])
def test_an_attempt_is_a_whole_number(attempt: object):
    with pytest.raises(ValueError, match="'attempt'"):
        read({"attempt": attempt}, text_input=strings(b"a"))


ROUND = {"reservation": "stream-1", "attempt": 2, "start_position": 4, "max_tokens": 0, "top_k": 5}


def test_a_resume_of_no_tokens_under_a_reservation_is_a_round_of_a_catch_up():
    """Its sampling parameters are the stream's own."""
    message = read(
        ROUND,
        text_input=strings(b"x"),
        resume_token_ids=np.array([8, 9], dtype=np.int32),
        sampling_parameters=strings(b'{"max_tokens": 64}'),
    )
    assert message == CatchUp(
        request=7,
        reservation="stream-1",
        attempt=2,
        start_position=4,
        text="x",
        resume_token_ids=[8, 9],
        sampling_parameters={"top_k": 5, "max_tokens": 64},
    )


def test_a_round_without_tokens_to_come_leaves_their_number_out():
    message = read(ROUND, text_input=strings(b"x"))
    assert isinstance(message, CatchUp)
    assert message.sampling_parameters == {"top_k": 5}


def test_a_reservation_with_tokens_to_come_is_what_the_request_goes_on_from():
    message = read({**ROUND, "max_tokens": 9}, text_input=strings(b"x"))
    assert isinstance(message, Generate)
    assert (message.reservation, message.attempt, message.sampling_parameters["max_tokens"]) == ("stream-1", 2, 9)


def test_no_tokens_without_a_reservation_are_left_for_the_engine_to_refuse():
    message = read({"max_tokens": 0}, text_input=strings(b"x"))
    assert isinstance(message, Generate)
    assert message.sampling_parameters == {"max_tokens": 0}


@pytest.mark.parametrize("parameter", ["reservation", "freeze"])
@pytest.mark.parametrize("value", ["", 5, "x" * 129])
def test_a_stream_is_named_by_a_short_string(parameter: str, value: object):
    with pytest.raises(ValueError, match=f"'{parameter}' must be the id of a stream"):
        stream_to_freeze({"freeze": value}) if parameter == "freeze" else read(
            {parameter: value}, text_input=strings(b"x")
        )


def test_a_round_begins_at_a_whole_position():
    with pytest.raises(ValueError, match="'start_position'"):
        read({**ROUND, "start_position": -1}, text_input=strings(b"x"))


def test_only_a_request_to_freeze_names_a_stream_to_freeze():
    assert (stream_to_freeze({"freeze": "stream-1"}), stream_to_freeze({"attempt": 1})) == ("stream-1", None)


def lists(message: Tokens | Position | CaughtUp) -> dict[str, Any]:
    return {name: array.tolist() for name, array in response_arrays(message, attempt=2, next_position=5)}


def test_a_heartbeat_has_no_tokens_and_says_how_far_the_prefill_is():
    assert lists(Position(request=7, state="prefilling", held_tokens=512, total_tokens=900)) == {
        "text_output": [b""],
        "output_ids": [],
        "first_position": [5],
        "attempt": [2],
        "held_tokens": [512],
        "total_tokens": [900],
    }


def test_a_round_is_answered_with_what_is_held():
    answer = lists(CaughtUp(request=7, held_tokens=44))
    assert (answer["held_tokens"], answer["finish_reason"], answer["first_position"]) == ([44], [b"caught_up"], [5])


def test_a_frozen_streams_last_response_has_its_token_state():
    message = Tokens(
        request=7,
        first_position=4,
        output_ids=[],
        text="",
        num_input_tokens=3,
        finish_reason="frozen",
        token_state="{}",
    )
    assert lists(message)["token_state"] == [b"{}"]


def test_a_response_says_where_its_tokens_belong():
    message = Tokens(
        request=7, first_position=4, output_ids=[8, 9], text="ab", num_input_tokens=3, finish_reason="stop"
    )
    arrays = dict(response_arrays(message, attempt=2, next_position=4))
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


def test_a_chat():
    message = read(messages=strings(b'[{"role": "user", "content": "hi"}]'))
    assert message == Generate(request=7, messages=[{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "'messages' is not JSON"),
        (b"[" * 100_000, "'messages' is nested too deeply; use at most 16 levels"),
        (b"{}", "'messages' must be a JSON list of objects"),
        (b'["hi"]', "'messages' must be a JSON list of objects"),
        (b"[]", "'messages' is empty"),
    ],
)
def test_a_chat_that_is_none_is_named(text: bytes, words: str):
    with pytest.raises(ValueError, match=words):
        read(messages=strings(text))


def test_a_round_takes_no_chat_because_its_stream_has_made_a_prompt_of_it_already():
    parameters = {"reservation": "s1", "max_tokens": 0}
    with pytest.raises(ValueError, match="takes no 'messages'; send the 'prompt_ids'"):
        read(parameters, messages=strings(b'[{"role": "user", "content": "hi"}]'))
