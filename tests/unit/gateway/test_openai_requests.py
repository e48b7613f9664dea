"""Bodies of OpenAI's API become requests, or typed errors: whatever a client sends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.openai import requests
from serverless_triton.scheduler.gateway.openai.errors import InvalidParameter, error_body
from serverless_triton.scheduler.gateway.openai.requests import Asked, read_chat, read_completion
from serverless_triton.scheduler.gateway.openapi import document
from serverless_triton.scheduler.gateway.tensors import read_request_tensors

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("type"), inner, max_size=3),
    max_leaves=8,
)
READERS = {"CompletionRequest": read_completion, "ChatRequest": read_chat}
SOUND: dict[str, dict[str, Any]] = {
    "CompletionRequest": {"model": "m", "prompt": "hi"},
    "ChatRequest": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}


def bodies(schema: str) -> st.SearchStrategy[dict[str, Any]]:
    """A sound body with one known member replaced by anything, or with an unknown one."""
    names = st.sampled_from(sorted(document()["components"]["schemas"][schema]["properties"])) | st.text()
    return st.builds(lambda name, value: {**SOUND[schema], name: value}, names, ANYTHING)


@pytest.mark.parametrize("schema", READERS)
@given(data=st.data())
def test_whatever_is_sent_becomes_a_request_or_a_typed_error(schema: str, data: st.DataObject) -> None:
    try:
        asked = READERS[schema](json.dumps(data.draw(bodies(schema))).encode())
    except InvalidRequest as error:
        status, body = error_body(error)
        assert status == 400
        json.dumps(body, ensure_ascii=False).encode()
    else:
        assert asked.infer_requests(100)


@pytest.mark.parametrize("part", ["role", "content", "name", "tool_calls", "other"])
@given(value=ANYTHING)
def test_whatever_a_message_holds_becomes_a_request_or_a_typed_error(part: str, value: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi", part: value}]}
    try:
        found = "", read_chat(json.dumps(body).encode()).infer_requests(100)
    except InvalidParameter as error:
        found = error.param, []
    assert found[1] or found[0].startswith("messages[0].")


def asked(**more: Any) -> Asked:
    return read_completion(json.dumps({**SOUND["CompletionRequest"], **more}).encode())


def test_prompts_are_not_repeated_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_MOST_PROMPT_BYTES", 1000)
    assert asked(prompt="x" * 90, n=10)
    with pytest.raises(InvalidParameter, match="more than 1000 bytes") as caught:
        asked(prompt="x" * 90, n=11)
    assert caught.value.param == "n"


def test_values_that_ask_for_nothing_are_not_sent() -> None:
    (request,) = asked(stop=[], stop_token_ids=[], seed=None, top_k=0, ignore_eos=False).infer_requests(100)
    sampling = json.loads(read_request_tensors(request)["sampling_parameters"].strings()[0])
    assert sampling == {"temperature": 1.0, "top_p": 1.0, "max_tokens": 16, "top_k": 0, "ignore_eos": False}


def test_prompts_stay_out_of_reprs() -> None:
    assert "secret" not in repr(asked(prompt="secret", stop="secret"))


WHOLE = {"max_tokens": 5, "n": 2, "seed": 7, "top_k": 3, "min_tokens": 1, "stop_token_ids": [4], "prompt": [1, 2]}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_may_be_written_as_a_float(name: str) -> None:
    as_float = [float(one) for one in WHOLE[name]] if isinstance(WHOLE[name], list) else float(WHOLE[name])
    plain = {"seed": 1, name: WHOLE[name]}
    assert asked(**{**plain, name: as_float}).infer_requests(100) == asked(**plain).infer_requests(100)


def test_prompts_of_token_ids_may_be_written_as_floats() -> None:
    assert asked(prompt=[[1.0, 2], [3]], seed=1).infer_requests(9) == asked(
        prompt=[[1, 2], [3]], seed=1
    ).infer_requests(9)


@pytest.mark.parametrize(("name", "value"), [("max_tokens", 5.5), ("n", 1e300), ("prompt", [1.5]), ("seed", 0.1)])
def test_a_number_that_is_not_whole_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        asked(**{name: value})
    assert caught.value.param == name


def chat(**more: Any) -> Asked:
    return read_chat(json.dumps({**SOUND["ChatRequest"], **more}).encode())


def test_both_names_of_a_chats_limit_may_be_given_where_they_agree() -> None:
    assert chat(max_tokens=5, max_completion_tokens=5.0).max_tokens == 5
    assert chat(max_completion_tokens=6).max_tokens == 6
    assert chat().max_tokens is None
    with pytest.raises(InvalidParameter, match="give one of them"):
        chat(max_tokens=5, max_completion_tokens=6)
