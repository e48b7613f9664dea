"""The form a client asked for."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.gateway.composer import FINAL, Composer, MalformedUpdate, read_update
from serverless_triton.scheduler.gateway.fake_upstream import token_response
from serverless_triton.scheduler.gateway.request import parse_request
from serverless_triton.scheduler.gateway.tensors import Tensor, add_output, pack, read_outputs
from serverless_triton.scheduler.gateway.upstream import RequestFailed
from serverless_triton.scheduler.journal import Journal
from tests.unit.gateway.samples import flag, infer_request


def compose_all(catalogue, request, *pieces, unary=False):
    """Responses for pieces of (ids, text), the last of them final."""
    parsed = parse_request(request, catalogue.entry("m"), unary=unary)
    journal = Journal().open("m")
    composer = Composer(parsed, journal)
    responses = []
    for index, (ids, text) in enumerate(pieces):
        final = "stop" if index == len(pieces) - 1 else None
        update = read_update(
            token_response(
                attempt=0,
                first_position=len(journal.output_ids),
                output_ids=ids,
                text=text,
                num_input_tokens=3,
                finish_reason=final,
            )
        )
        journal.accept(attempt=0, first_position=update.first_position, output_ids=ids, text=text)
        journal.learn([1, 2, 3], 3, final)
        responses.append(composer.compose(update))
    return [response for response in responses if response is not None]


def text_of(response):
    return read_outputs(response)["text_output"].strings()[0]


def test_whole_text_is_one_response_after_the_prompt(catalogue):
    (response,) = compose_all(catalogue, infer_request(), ([1], "é"), ([2], ""), ([3], "!"))
    assert text_of(response) == "hié!".encode()
    assert response.parameters[FINAL].bool_param
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "c1")
    assert [output.name for output in response.outputs] == ["text_output"]


@pytest.mark.parametrize("asked", [None, False, True])
def test_the_last_response_of_a_stream_is_marked_and_none_is_empty(catalogue, asked):
    request = infer_request(flag("stream"))
    if asked is not None:
        request.parameters["triton_enable_empty_final_response"].bool_param = asked
    responses = compose_all(catalogue, request, ([1], "a"), ([2], "b"))
    assert [r.parameters[FINAL].bool_param for r in responses] == [False, True]
    assert all(r.outputs for r in responses)


def test_the_one_response_of_a_unary_call_has_no_marker(catalogue):
    (response,) = compose_all(catalogue, infer_request(), ([1], "a"), ([2], "b"), unary=True)
    assert FINAL not in response.parameters


def test_streamed_text_has_counts_of_its_own_pieces(catalogue):
    flags = [flag(f"return_{name}") for name in ("finish_reason", "num_input_tokens", "num_output_tokens")]
    responses = compose_all(catalogue, infer_request(flag("stream"), *flags), ([1, 2], "ab"), ([3], "c"))
    assert [text_of(r) for r in responses] == [b"ab", b"c"]
    assert [read_outputs(r)["num_output_tokens"].numbers() for r in responses] == [(2,), (1,)]
    assert [read_outputs(r)["num_input_tokens"].numbers() for r in responses] == [(3,), (3,)]
    assert [read_outputs(r)["finish_reason"].strings() for r in responses] == [[b"None"], [b"stop"]]


def test_only_listed_outputs_are_sent(catalogue):
    request = infer_request(flag("return_finish_reason"))
    for name in ("prompt_ids", "output_ids"):
        request.outputs.add(name=name)
    (response,) = compose_all(catalogue, request, ([1], "a"), ([2], "b"))
    outputs = read_outputs(response)
    assert outputs.keys() == {"prompt_ids", "output_ids"}
    assert outputs["output_ids"].numbers() == (1, 2)
    assert outputs["prompt_ids"].numbers() == (1, 2, 3)


def test_the_empty_final_response_says_nothing():
    response = token_response(attempt=0, first_position=0, output_ids=[], text="")
    response.ClearField("outputs")
    assert read_update(response) is None


@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_token_state_must_be_there(missing):
    response = token_response(attempt=0, first_position=0, output_ids=[1], text="a")
    del response.outputs[missing], response.raw_output_contents[missing]
    with pytest.raises(MalformedUpdate):
        read_update(response)


def test_a_tensor_of_another_size_is_malformed():
    response = token_response(attempt=0, first_position=0, output_ids=[1], text="a")
    response.raw_output_contents[2] = b"\0"
    with pytest.raises(MalformedUpdate):
        read_update(response)


def test_a_failure_of_the_replica_keeps_its_code_and_words():
    response = pb.ModelInferResponse()
    add_output(response, Tensor(name="failure", datatype="BYTES", shape=(2,), raw=pack("BYTES", [b"NOT_FOUND", b"no"])))
    with pytest.raises(RequestFailed, match="no") as caught:
        read_update(response)
    assert caught.value.code == "NOT_FOUND"
