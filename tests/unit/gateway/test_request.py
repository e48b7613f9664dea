"""What a client asked for, by vllm_backend's convention."""

from __future__ import annotations

import json

import pytest

from serverless_triton.scheduler.admission import StreamId
from serverless_triton.scheduler.errors import InvalidRequest, UnknownModel
from serverless_triton.scheduler.gateway.request import EMPTY_FINAL, parse_request
from serverless_triton.scheduler.gateway.tensors import number_tensor, read_request_tensors, string_tensor
from serverless_triton.scheduler.journal import ResumePoint
from tests.unit.gateway.samples import flag, infer_request

START = ResumePoint(attempt=0, token_ids=())


@pytest.fixture
def parse(catalogue):
    return lambda request, **options: parse_request(request, catalogue.entry("m"), **options)


@pytest.mark.parametrize(
    ("tensors", "whole", "prompt"),
    [
        ((), True, b"hi"),
        ((flag("stream", False),), True, b"hi"),
        ((flag("exclude_input_in_output"),), True, b""),
        ((flag("stream"),), False, b""),
        ((flag("stream"), flag("exclude_input_in_output")), False, b""),
    ],
)
def test_whether_text_is_streamed_and_the_prompt_stands_before_it(parse, tensors, whole, prompt):
    request = parse(infer_request(*tensors))
    assert (request.whole, request.prompt_text) == (whole, prompt)


def test_prompt_before_streamed_text_is_refused(parse):
    with pytest.raises(InvalidRequest, match="exclude_input_in_output"):
        parse(infer_request(flag("stream"), flag("exclude_input_in_output", False)))


def test_a_unary_call_gets_the_whole_text_even_if_it_says_stream(parse):
    assert parse(infer_request(flag("stream")), unary=True).whole


def test_sampling_parameters_stand_over_request_parameters(parse):
    request = infer_request(string_tensor("sampling_parameters", b'{"top_p": 0.5, "stop": ["x"]}'))
    request.parameters["top_p"].double_param = 0.1
    request.parameters["max_tokens"].int64_param = 4
    request.parameters["priority"].int64_param = 1
    request.parameters[EMPTY_FINAL].bool_param = True
    assert parse(request).sampling_parameters == {"top_p": 0.5, "stop": ["x"], "max_tokens": 4}


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff", b'"x"'])
def test_sampling_parameters_that_are_no_json_object(parse, text):
    with pytest.raises(InvalidRequest, match="sampling_parameters"):
        parse(infer_request(string_tensor("sampling_parameters", text)))


@pytest.mark.parametrize("levels", [17, 500, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_sampling_parameters_nested_without_end(parse, levels, opening, closing):
    text = b'{"stop": ' + opening * (levels - 1) + b"1" + closing * (levels - 1) + b"}"
    with pytest.raises(InvalidRequest, match="'sampling_parameters' is nested too deeply; use at most 16 levels"):
        parse(infer_request(string_tensor("sampling_parameters", text)))


def test_sampling_parameters_may_be_nested(parse):
    text = b'{"guide": ' + b"[" * 15 + b"1" + b"]" * 15 + b"}"
    assert "guide" in parse(infer_request(string_tensor("sampling_parameters", text))).sampling_parameters


@pytest.mark.parametrize("name", ["attempt", "token_state", "resume_token_ids", "deadline_unix_s"])
def test_token_state_is_the_gateways(parse, name):
    request = infer_request()
    request.parameters[name].int64_param = 1
    with pytest.raises(InvalidRequest, match=f"'{name}' is reserved"):
        parse(request)


def test_resume_tensor_is_the_gateways(parse):
    with pytest.raises(InvalidRequest, match="'resume_token_ids' is reserved"):
        parse(infer_request(number_tensor("resume_token_ids", "INT32", [1])))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (EMPTY_FINAL, "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param."),
        ("triton_x", "parameter keys starting with 'triton_' are reserved for Triton usage."),
        ("sequence_id", "invalid value type for 'sequence_id' parameter, expected int64_param or string_param."),
        ("timeout", "invalid value type for 'timeout' parameter, expected int64_param."),
    ],
)
def test_tritons_parameters_in_tritons_words(parse, name, words):
    request = infer_request()
    request.parameters[name].double_param = 1.5
    with pytest.raises(InvalidRequest) as caught:
        parse(request)
    assert str(caught.value).startswith(words)


def test_timeout_bounds_the_whole_request(parse):
    request = infer_request()
    request.parameters["timeout"].int64_param = 2_500_000
    assert parse(request).timeout_s == 2.5
    assert parse(infer_request()).timeout_s is None


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
def test_priority_is_the_requests(parse, kind):
    request = infer_request()
    setattr(request.parameters["priority"], kind, 2)
    assert parse(request).priority == 2
    assert parse(infer_request()).priority == 0


def test_the_gateways_own_wishes_never_reach_the_model(parse):
    request = infer_request()
    for name in ("return_queue_position", "return_receipt"):
        request.parameters[name].bool_param = True
    assert parse(request).returns_queue_position
    assert parse(request).returns_receipt
    assert parse(request).sampling_parameters == {}
    plain = parse(infer_request())
    assert not plain.returns_queue_position
    assert not plain.returns_receipt


def test_exactly_one_prompt(parse):
    words = "exactly one of the inputs 'text_input', 'input_ids' and 'messages'"
    for other in (number_tensor("input_ids", "INT32", [1]), string_tensor("messages", b"[{}]")):
        with pytest.raises(InvalidRequest, match=words):
            parse(infer_request(other))
    with pytest.raises(InvalidRequest, match=words):
        parse(without_text(flag("stream")))


def without_text(*tensors):
    request = infer_request(*tensors)
    del request.inputs[0], request.raw_input_contents[0]
    return request


def test_a_chat_goes_upstream_as_it_is(parse):
    text = b'[{"role": "user", "content": "hi"}]'
    sent = parse(without_text(string_tensor("messages", text))).upstream(StreamId("s1"), START)
    assert read_request_tensors(sent)["messages"].strings() == [text]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{}", "'messages' must be a JSON list of objects"),
        (b"[]", "'messages' is empty"),
        (b"\xff", "'messages' is not UTF-8 at byte 0"),
        (b'[{"content": ' + b"[" * 20 + b"]" * 20 + b"}]", "'messages' is nested too deeply"),
        (b"[" * 100_000, "'messages' is nested too deeply"),
    ],
)
def test_a_chat_that_is_none(parse, text, words):
    with pytest.raises(InvalidRequest, match=words):
        parse(without_text(string_tensor("messages", text)))


@pytest.mark.parametrize("prompt", [("text_input", b"hi"), ("messages", b"[{}]")])
def test_a_resumed_stream_repeats_the_prompts_ids_instead_of_making_them_again(parse, prompt):
    resume = ResumePoint(attempt=1, token_ids=(4, 5), prompt_ids=(7, 8))
    sent = read_request_tensors(parse(without_text(string_tensor(*prompt))).upstream(StreamId("s1"), resume))
    assert sent["input_ids"].numbers() == (7, 8)
    assert not sent.keys() & {"text_input", "messages"}


def test_prompt_that_is_no_text(parse):
    with pytest.raises(InvalidRequest, match="'text_input' is not UTF-8 at byte 1"):
        parse(infer_request(text=b"a\xff"))


def test_shared_memory_is_refused(parse):
    request = infer_request()
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidRequest, match="shared memory"):
        parse(request)


def test_a_version_that_is_not_served(parse):
    request = infer_request()
    request.model_version = "7"
    with pytest.raises(UnknownModel):
        parse(request)


def test_what_goes_upstream(parse):
    request = infer_request(flag("return_finish_reason"), string_tensor("sampling_parameters", b'{"seed": 3}'))
    sent = parse(request).upstream(StreamId("s1"), ResumePoint(attempt=2, token_ids=(4, 5)))
    tensors = read_request_tensors(sent)
    assert (sent.id, sent.model_name) == ("s1", "m")
    assert tensors["stream"].flag()
    assert tensors["resume_token_ids"].numbers() == (4, 5)
    assert json.loads(tensors["sampling_parameters"].strings()[0]) == {"seed": 3}
    assert sent.parameters["attempt"].int64_param == 2
    assert "resume_token_ids" not in read_request_tensors(parse(request).upstream(StreamId("s1"), START))
    assert "deadline_unix_s" not in sent.parameters
    timed = parse(request).upstream(StreamId("s1"), START, deadline_unix_s=1_800_000_000)
    assert timed.parameters["deadline_unix_s"].int64_param == 1_800_000_000


def test_prompts_stay_out_of_reprs(parse):
    request = parse(infer_request(text=b"secret"))
    assert "secret" not in repr(request)
