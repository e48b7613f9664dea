"""A token state as a message: it comes back as it went, and what is none is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_triton.backend import token_state
from serverless_triton.backend.engines.fake import ByteTokenizer
from serverless_triton.backend.engines.generation import Generation
from serverless_triton.backend.engines.sampling_parameters import SamplingParameters
from serverless_triton.backend.token_state import (
    ForeignContract,
    MalformedTokenState,
    StopState,
    TokenState,
    TokenStateError,
    TokenStateTooLarge,
    UnknownTokenStateVersion,
    encode_token_state,
    parse_token_state,
)

CONTRACT = "0123456789abcdef" * 4
SECRET = "a prompt that no message may show"

ids = st.lists(st.integers(0, 2**31 - 1), max_size=40).map(tuple)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
parameters = st.dictionaries(st.text().filter(lambda name: name not in ("seed", "temperature")), plain, max_size=4)
states = st.builds(
    TokenState,
    prompt_ids=ids.filter(bool),
    output_ids=ids.filter(bool),
    emitted_length=st.integers(0, 2**31 - 1),
    sampling_parameters=parameters,
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop_state=st.builds(
        StopState, held_text=st.text(max_size=50), finish_reason=st.sampled_from([None, "stop", "length"])
    ),
    deadline_unix_s=st.none() | st.floats(0, 2**40),
    contract=st.text("0123456789abcdef", min_size=64, max_size=64),
)


def state(**changes: Any) -> TokenState:
    values: dict[str, Any] = {
        "prompt_ids": (1, 2, 3),
        "output_ids": (4, 5),
        "emitted_length": 7,
        "sampling_parameters": {"temperature": 0.5, "stop": ["###"], "max_tokens": 64},
        "seed": 11,
        "stop_state": StopState(held_text="#"),
        "deadline_unix_s": 1.9e9,
        "contract": CONTRACT,
    }
    return TokenState(**{**values, **changes})


def message(**changes: Any) -> str:
    """A sound message with some of its fields replaced, or left out where the change is `...`."""
    body = {**json.loads(encode_token_state(state())), **changes}
    return json.dumps({name: value for name, value in body.items() if value is not ...})


@settings(deadline=None)
@given(states)
def test_a_state_comes_back_as_it_went(given_state: TokenState):
    assert parse_token_state(encode_token_state(given_state)) == given_state


@settings(deadline=None)
@given(st.binary(max_size=200) | plain.map(json.dumps).map(str.encode))
def test_whatever_else_arrives_is_a_typed_error(data: bytes):
    with pytest.raises(TokenStateError):
        parse_token_state(data)


@settings(deadline=None)
@given(states, st.data())
def test_a_state_that_was_cut_off_is_never_another_state(given_state: TokenState, data: st.DataObject):
    text = encode_token_state(given_state)
    with pytest.raises(TokenStateError):
        parse_token_state(text[: data.draw(st.integers(0, len(text) - 1))])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contract": ...}, "lacks 'contract'"),
        ({"more": 1}, "fields that version 1 does not know"),
        ({"prompt_ids": []}, "'prompt_ids' must be a list of at least 1"),
        ({"prompt_ids": "123"}, "'prompt_ids'"),
        ({"output_ids": [True]}, "'output_ids' must be whole numbers"),
        ({"output_ids": [1.0]}, "'output_ids' must be whole numbers"),
        ({"output_ids": [-1]}, "'output_ids' must be whole numbers"),
        ({"output_ids": [2**31]}, "'output_ids' must be whole numbers"),
        ({"output_ids": []}, "'emitted_length' counts text"),
        ({"emitted_length": -1}, "'emitted_length'"),
        ({"emitted_length": True}, "'emitted_length'"),
        ({"sampling_parameters": []}, "'sampling_parameters' must be an object"),
        ({"sampling_parameters": {"seed": 1}}, "it belongs into 'seed'"),
        ({"sampling_parameters": {"stop": ["\ud800"]}}, "'sampling_parameters' must be Unicode text"),
        ({"seed": None}, "'seed' is missing"),
        ({"seed": 2**63}, "'seed'"),
        ({"seed": "1"}, "'seed'"),
        ({"stop_state": None}, "'stop_state' must be an object"),
        ({"stop_state": {"held_text": ""}}, "lacks 'finish_reason'"),
        ({"stop_state": {"held_text": 1, "finish_reason": None}}, "'stop_state.held_text'"),
        ({"stop_state": {"held_text": "", "finish_reason": "frozen"}}, "'stop_state.finish_reason'"),
        ({"stop_state": {"held_text": "", "finish_reason": []}}, "'stop_state.finish_reason'"),
        ({"deadline_unix_s": -1}, "'deadline_unix_s'"),
        ({"deadline_unix_s": "soon"}, "'deadline_unix_s'"),
        ({"contract": CONTRACT.upper()}, "'contract'"),
        ({"version": "1"}, "whole number as its 'version'"),
    ],
)
def test_a_field_that_is_wrong_is_named_with_what_would_be_right(changes: dict[str, Any], words: str):
    with pytest.raises(MalformedTokenState, match=words):
        parse_token_state(message(**changes))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_refused(number: str):
    text = message().replace("1900000000.0", number)
    assert number in text
    with pytest.raises(MalformedTokenState):
        parse_token_state(text)


def test_a_field_that_comes_twice_is_refused():
    with pytest.raises(MalformedTokenState, match="twice"):
        parse_token_state(message()[:-1] + ', "seed": 12}')


def test_another_version_is_not_guessed_at():
    with pytest.raises(UnknownTokenStateVersion, match="version 2; this program reads 1"):
        parse_token_state(message(version=2, more="fields"))


@pytest.mark.parametrize(
    ("bound", "limit", "words"),
    [
        ("MAX_BYTES", 100, "over the limit of 100"),
        ("MAX_TOKENS", 1, "'prompt_ids' has 3 ids; the limit is 1"),
        ("MAX_PARAMETER_BYTES", 10, "'sampling_parameters' is over the limit of 10"),
        ("MAX_LEVELS", 1, "'sampling_parameters' is nested over 1 levels"),
        ("MAX_HELD_CHARACTERS", 0, "'stop_state.held_text' has 1 characters; the limit is 0"),
    ],
)
def test_what_is_over_a_bound_is_refused(monkeypatch: pytest.MonkeyPatch, bound: str, limit: int, words: str):
    text = message()
    monkeypatch.setattr(token_state, bound, limit)
    with pytest.raises(TokenStateTooLarge, match=words):
        parse_token_state(text)


def test_a_state_over_the_bound_is_not_even_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_state, "MAX_BYTES", 100)
    with pytest.raises(TokenStateTooLarge):
        encode_token_state(state())


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_a_parameter_that_json_cannot_say_is_refused_when_it_is_written(value: object):
    with pytest.raises(MalformedTokenState, match="what JSON cannot say"):
        encode_token_state(state(sampling_parameters={"top_p": value}))


def test_nesting_deeper_than_the_parser_goes_is_an_error_and_no_crash():
    with pytest.raises(TokenStateError):
        parse_token_state('{"version":1,"a":' + "[" * 100_000)


def test_no_message_shows_what_the_state_holds():
    shown = repr(state(sampling_parameters={"stop": [SECRET]}, stop_state=StopState(held_text=SECRET)))
    with pytest.raises(TokenStateError) as caught:
        parse_token_state(message(contract=SECRET))
    assert SECRET not in shown + str(caught.value)


def test_a_state_of_another_contract_is_refused_before_anything_is_computed():
    state().require_contract(CONTRACT)
    with pytest.raises(ForeignContract, match="0123456789ab, and here it would be ffffffffffff"):
        state().require_contract("f" * 64)


def test_a_resume_draws_with_the_same_seed():
    assert state().resume_parameters == {"temperature": 0.5, "stop": ["###"], "max_tokens": 64, "seed": 11}
    assert "seed" not in state(sampling_parameters={}, seed=None).resume_parameters


def generation(output_ids: bytes, stop: list[str]) -> Generation:
    begun = Generation(
        request=1,
        prompt_ids=list(b"prompt"),
        parameters=SamplingParameters.parse({"stop": stop, "max_tokens": 100}),
        tokenizer=ByteTokenizer(),
        eos_ids=(),
        room_tokens=100,
    )
    begun.replay(list(output_ids))
    return begun


@settings(deadline=None)
@given(
    st.text("ab#\u20ac", min_size=1, max_size=30).map(str.encode),
    st.lists(st.text("ab#", min_size=1, max_size=4), max_size=2),
    st.data(),
)
def test_replaying_a_parsed_state_goes_on_with_exactly_the_text_that_was_not_emitted(
    answer: bytes, stop: list[str], data: st.DataObject
):
    """Cut anywhere, also inside a character or in what may become a stop string."""
    cut = data.draw(st.integers(1, len(answer)))
    whole = generation(b"", stop)
    texts = [whole.accept(token) for token in answer if whole.finish_reason is None]
    cut = min(cut, len(texts))
    frozen = state(
        prompt_ids=tuple(b"prompt"), output_ids=tuple(answer[:cut]), emitted_length=len("".join(texts[:cut]))
    )
    arrived = parse_token_state(encode_token_state(frozen))

    resumed = generation(bytes(arrived.output_ids), stop)
    rest = [resumed.accept(token) for token in answer[cut:] if resumed.finish_reason is None]

    assert "".join(rest) == "".join(texts)[arrived.emitted_length :]
    assert resumed.finish_reason == whole.finish_reason
