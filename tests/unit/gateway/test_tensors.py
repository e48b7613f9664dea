"""Inputs in Triton's words: each message was recorded from tritonserver 2.51."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.tensors import Tensor, check_outputs, pack, read_inputs
from tests.unit.gateway.samples import infer_request

STRING = pack("BYTES", [b"hi"])


def tensor(name, datatype, shape, raw):
    return Tensor(name=name, datatype=datatype, shape=tuple(shape), raw=raw)


def only(*tensors):
    request = infer_request(*tensors, client_id="i1")
    del request.inputs[0], request.raw_input_contents[0]
    return request


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            tensor("text_input", "INT32", [1], b"\0" * 4),
            "[request id: i1] inference input 'text_input' data-type is 'INT32', but model 'm' expects 'BYTES'",
        ),
        (
            tensor("text_input", "FOO", [1], b"\0" * 4),
            "[request id: i1] inference input 'text_input' data-type is '<invalid>', but model 'm' expects 'BYTES'",
        ),
        (
            tensor("text_input", "BYTES", [2], STRING * 2),
            "[request id: i1] unexpected shape for input 'text_input' for model 'm'. Expected [1], got [2]. ",
        ),
        (
            tensor("text_input", "BYTES", [1, 1], STRING),
            "[request id: i1] unexpected shape for input 'text_input' for model 'm'. Expected [1], got [1,1]. ",
        ),
        (
            tensor("input_ids", "INT32", [-1], b"\0" * 4),
            "[request id: i1] All input dimensions should be specified for input 'input_ids' for model 'm', got [-1]",
        ),
        (
            tensor("input_ids", "INT32", [2], b"\0" * 4),
            "[request id: i1] input byte size mismatch for input 'input_ids' for model 'm'. Expected 8, got 4",
        ),
        (
            tensor("stream", "BOOL", [1], b"\1\1"),
            "[request id: i1] input byte size mismatch for input 'stream' for model 'm'. Expected 1, got 2",
        ),
        (
            tensor("text_input", "BYTES", [1], b""),
            "[request id: i1] expected 1 string elements for inference input 'text_input' for model 'm', got 0",
        ),
        (
            tensor("text_input", "BYTES", [1], STRING * 2),
            "[request id: i1] unexpected number of string elements 2 for inference input 'text_input' for model 'm', "
            "expecting 1",
        ),
        (
            tensor("text_input", "BYTES", [1], b"\x02\0"),
            "[request id: i1] incomplete string length indicator for inference input 'text_input' for model 'm', "
            "expecting 4 bytes but only 2 bytes available. Please make sure the string length indicator is in one "
            "buffer.",
        ),
        (tensor("bogus", "BYTES", [1], STRING), "unexpected inference input 'bogus' for model 'm'"),
    ],
)
def test_a_wrong_input_in_tritons_words(catalogue, given, words):
    with pytest.raises(InvalidRequest) as caught:
        read_inputs(only(given), catalogue.entry("m"))
    assert str(caught.value) == words


def test_an_incomplete_string_names_the_tensor(catalogue):
    with pytest.raises(InvalidRequest, match=r"'text_input'.* length 9 but only 2"):
        read_inputs(only(tensor("text_input", "BYTES", [1], b"\x09\0\0\0hi")), catalogue.entry("m"))


def test_a_huge_shape_costs_nothing(catalogue):
    with pytest.raises(InvalidRequest, match="byte size mismatch"):
        read_inputs(only(tensor("input_ids", "INT32", [2**62], b"\0" * 4)), catalogue.entry("m"))


def test_the_same_input_twice(catalogue):
    given = tensor("text_input", "BYTES", [1], STRING)
    with pytest.raises(InvalidRequest, match=r"\[request id: i1\] input 'text_input' already exists in request"):
        read_inputs(only(given, given), catalogue.entry("m"))


def test_a_request_without_id_has_tritons_placeholder(catalogue):
    request = only(tensor("stream", "BOOL", [2], b"\1\1"))
    request.id = ""
    with pytest.raises(InvalidRequest, match=r"^\[request id: <id_unknown>\] "):
        read_inputs(request, catalogue.entry("m"))


def test_missing_raw_contents(catalogue):
    request = infer_request()
    request.inputs.add(name="stream", datatype="BOOL", shape=[1])
    words = "unable to find data for input tensor 'stream' for model 'm' in request."
    with pytest.raises(InvalidRequest, match=words):
        read_inputs(request, catalogue.entry("m"))


def test_contents_beside_raw_contents(catalogue):
    request = infer_request()
    request.inputs[0].contents.bytes_contents.append(b"hi")
    with pytest.raises(InvalidRequest, match="contents field must not be specified when using raw_input_contents for"):
        read_inputs(request, catalogue.entry("m"))


def typed(name, datatype, shape, **contents):
    request = pb.ModelInferRequest(model_name="m", id="i1")
    added = request.inputs.add(name=name, datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(added.contents, field).extend(values)
    return request


@pytest.mark.parametrize(
    ("request_", "raw"),
    [
        (typed("text_input", "BYTES", [1], bytes_contents=[b"hi"]), STRING),
        (typed("input_ids", "INT32", [2], int_contents=[1, -1]), b"\1\0\0\0\xff\xff\xff\xff"),
        (typed("input_ids", "INT32", [0]), b""),
        (typed("stream", "BOOL", [1], bool_contents=[True]), b"\1"),
    ],
)
def test_typed_contents_become_raw(catalogue, request_, raw):
    (found,) = read_inputs(request_, catalogue.entry("m")).values()
    assert found.raw == raw


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (
            typed("text_input", "BYTES", [1], int_contents=[1]),
            "unexpected explicit tensor data for input tensor 'text_input' for model 'm' of type 'INT32', expected "
            "datatype 'BYTES'",
        ),
        (
            typed("text_input", "BYTES", [1]),
            "unable to find data for input tensor 'text_input' for model 'm' in request.",
        ),
    ],
)
def test_wrong_typed_contents(catalogue, request_, words):
    with pytest.raises(InvalidRequest) as caught:
        read_inputs(request_, catalogue.entry("m"))
    assert str(caught.value) == words


def test_unknown_output(catalogue):
    request = infer_request()
    request.outputs.add(name="first_position")
    with pytest.raises(InvalidRequest, match="unexpected inference output 'first_position' for model 'm'"):
        check_outputs(request, catalogue.entry("m"))
