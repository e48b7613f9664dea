"""Requests for other backends' models over HTTP: every form that Triton takes, and any number of responses."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.gateway.tensors import add_output, number_tensor, read_request_tensors
from tests.unit.gateway.samples import add_model

SEQUENCES = "sequence_batching { max_sequence_idle_microseconds: 2500000 }"
INT = "output [{ name: 'n' data_type: TYPE_INT32 dims: [1] }]"
MODELS = {
    "often": "model_transaction_policy { decoupled: true } input [{ name: 'x' data_type: TYPE_FP32 dims: [-1] }]",
    "any_size": "max_batch_size: 4 input [{ name: 'x' data_type: TYPE_INT16 dims: [2, -1] }]",
    "any_sizes": "input [{ name: 'x' data_type: TYPE_INT16 dims: [-1, -1] }]",
    "word": "input [{ name: 'x' data_type: TYPE_STRING dims: [1] }]",
    "words": "input [{ name: 'x' data_type: TYPE_STRING dims: [-1] }]",
    "stateful": f"{SEQUENCES} input [{{ name: 'x' data_type: TYPE_FP32 dims: [1] }}]",
    "two": "input [{ name: 'x' data_type: TYPE_FP32 dims: [1] }, { name: 'y' data_type: TYPE_FP32 dims: [1] }]",
}
NOT_ONE = "generate expects model to produce exactly 1 response"


@pytest.fixture
def repository(repository):
    for name, config in MODELS.items():
        add_model(repository, name, f'backend: "python" {config} {INT}')
    return repository


@pytest.fixture
async def http(manual_gateway):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{manual_gateway.http_port}") as session:
        yield session


def answer(number: int) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="often", model_version="1")
    add_output(response, number_tensor("n", "INT32", [number]))
    return response


async def generated(http, by_hand, call: str, count: int) -> tuple[int, str]:
    """What `call` of the decoupled model answers whose server sends so many responses."""
    asked = asyncio.ensure_future(http.post(f"/v2/models/often/{call}", json={"x": [1.0]}))
    upstream = await by_hand.call(0)
    for number in range(count):
        upstream.send(answer(number))
    upstream.end()
    async with await asyncio.wait_for(asked, 10) as told:
        return told.status, await told.text()


async def test_generate_of_a_decoupled_model_has_its_one_response(http, by_hand, admission):
    status, body = await generated(http, by_hand, "generate", 1)
    assert (status, json.loads(body)["n"]) == (200, 0)
    assert by_hand.calls[0].streamed
    assert admission.held == []


@pytest.mark.parametrize("count", [0, 2])
async def test_generate_of_another_number_of_responses_is_refused_in_tritons_words(http, by_hand, admission, count):
    status, body = await generated(http, by_hand, "generate", count)
    assert status == 400
    assert json.loads(body)["error"].startswith(NOT_ONE)
    assert admission.held == []


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_generate_stream_has_as_many_events_as_there_are_responses(http, by_hand, count):
    status, body = await generated(http, by_hand, "generate_stream", count)
    events = [json.loads(line.removeprefix("data: "))["n"] for line in body.splitlines() if line]
    assert (status, events) == (200, list(range(count)))


async def test_infer_of_a_decoupled_model_is_refused_in_tritons_words(http, by_hand):
    async with http.post("/v2/models/often/infer", json={"inputs": []}) as told:
        error = (await told.json())["error"]
    assert (told.status, error) == (501, "HTTP end point doesn't support models with decoupled transaction policy")
    assert by_hand.calls == []


async def infer_raw(http, model: str, body: bytes):
    return await http.post(f"/v2/models/{model}/infer", data=body, headers={"Inference-Header-Content-Length": "0"})


@pytest.mark.parametrize(
    ("model", "body", "shape"),
    [
        ("onnx", np.array([1, 2], np.float32).tobytes(), (2,)),
        ("any_size", bytes(12), (1, 2, 3)),
        ("word", "grün".encode(), (1,)),
    ],
)
async def test_a_body_without_json_is_the_models_one_input(http, by_hand, model, body, shape):
    asked = asyncio.ensure_future(infer_raw(http, model, body))
    call = await by_hand.call(0)
    (tensor,) = read_request_tensors(call.request).values()
    assert (tensor.name, tensor.shape) == ("x", shape)
    assert tensor.strings() == [body] if model == "word" else tensor.raw == body
    call.send(answer(7))
    call.end()
    async with await asked as told:
        length = int(told.headers["Inference-Header-Content-Length"])
        assert (await told.read())[length:] == np.array([7], np.int32).tobytes()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("two", "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'two' model"),
        ("any_sizes", "can not be deduced because there are more than one variable-sized dimension"),
        ("words", "For BYTE datatype raw input 'x', the model must have input shape [1]"),
    ],
)
async def test_a_raw_body_whose_shape_does_not_follow_is_refused_in_tritons_words(http, by_hand, model, words):
    async with await infer_raw(http, model, b"1234") as told:
        assert told.status == 400
        assert words in (await told.json())["error"]
    assert by_hand.calls == []


async def test_classes_are_asked_of_the_model(http, by_hand):
    tensor = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}
    body = {"inputs": [tensor], "outputs": [{"name": "n", "parameters": {"classification": 3}}]}
    asked = asyncio.ensure_future(http.post("/v2/models/onnx/infer", json=body))
    call = await by_hand.call(0)
    assert call.request.outputs[0].parameters["classification"].int64_param == 3
    call.send(answer(7))
    call.end()
    assert (await asked).status == 200


@pytest.mark.parametrize(("said", "sent"), [(2**63 + 5, 5 - 2**63), (2**64 - 1, -1), (7, 7)])
async def test_a_sequence_may_have_any_id_of_64_bits(http, by_hand, said, sent):
    begins = {"sequence_id": said, "sequence_start": True}
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    asked = asyncio.ensure_future(
        http.post("/v2/models/stateful/infer", json={"inputs": [tensor], "parameters": begins})
    )
    call = await by_hand.call(0)
    assert call.request.parameters["sequence_id"].int64_param == sent
    call.send(answer(7))
    call.end()
    assert (await asked).status == 200
    continues = {"inputs": [tensor], "parameters": {"sequence_id": said ^ 2**62}}
    async with http.post("/v2/models/stateful/infer", json=continues) as told:
        assert f"sequence {said ^ 2**62} to model 'stateful' must specify the START flag" in await told.text()


async def test_a_sequence_id_of_more_than_64_bits_is_refused(http, by_hand):
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    body = {"inputs": [tensor], "parameters": {"sequence_id": 2**64, "sequence_start": True}}
    async with http.post("/v2/models/stateful/infer", json=body) as told:
        assert told.status == 400
    assert by_hand.calls == []
