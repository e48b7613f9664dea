"""Waiting honestly: what unmodified clients hear when it is not going to happen."""

from __future__ import annotations

import json

import aiohttp
import grpc
import numpy as np
import openai
import pytest
import tritonclient.grpc.aio
from openai import AsyncOpenAI
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.scheduler.admission import Outlook
from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed, NoCapacity
from tests.unit.gateway.samples import flag, infer_request

BODY = {"text_input": "hi"}


def prompt():
    tensor = tritonclient.grpc.aio.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"hi"], dtype=object))
    return tensor


@pytest.fixture
async def http(gateway):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.http_port}") as session:
        yield session


@pytest.fixture
async def stub(gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
async def client(gateway):
    url = f"http://127.0.0.1:{gateway.http_port}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


STARTS_SOON = Outlook(model="m", waiting=2, queue_position=3, estimated_start_s=1.5)


async def test_what_a_request_would_meet_is_told_before_it_is_made(http, admission):
    admission.outlooks["m"] = STARTS_SOON
    async with http.get("/v2/cluster/outlook/m") as answer:
        assert answer.status == 200
        assert await answer.json() == {"model": "m", "waiting": 2, "queue_position": 3, "estimated_start_s": 1.5}
    async with http.get("/v2/cluster/outlook/sleeper") as answer:
        assert (await answer.json())["queue_position"] == 0
    assert not admission.admitted


async def test_what_is_not_there_has_no_outlook(http):
    async with http.get("/v2/cluster/outlook/nope") as answer:
        assert answer.status == 404
        assert "error" in await answer.json()


async def test_events_tell_the_wait_before_the_model_runs(http, admission):
    admission.outlooks["m"] = STARTS_SOON
    admission.hold()
    body = {**BODY, "stream": True, "return_queue_position": True}
    async with http.post("/v2/models/m/generate_stream", json=body) as answer:
        first = json.loads((await answer.content.readline()).removeprefix(b"data: "))
        assert (first["queue_position"], first["estimated_start_s"]) == (3, 1.5)
        assert "text_output" not in first
        admission.release_held()
        rest = (await answer.text()).strip().split("\n\n")
    texts = [json.loads(event.removeprefix("data: "))["text_output"] for event in rest]
    assert texts == [" 0", " 1", " 2", " 3"]


async def test_events_say_when_to_come_back(http, admission):
    admission.refuse(NoCapacity("full", retry_after_s=2.5))
    body = {**BODY, "stream": True, "return_queue_position": True}
    async with http.post("/v2/models/m/generate_stream", json=body) as answer:
        _, last = (await answer.text()).strip().split("\n\n")
    assert json.loads(last.removeprefix("data: ")) == {"error": "full", "retry_after_s": 2.5}


@pytest.mark.parametrize("path", ["/v2/models/m/generate", "/v2/models/m/infer"])
async def test_a_body_with_the_whole_text_tells_the_wait(http, admission, path):
    admission.outlooks["m"] = STARTS_SOON
    text = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hi"]}
    body = {**BODY, "inputs": [text], "parameters": {"return_queue_position": True}}
    if path.endswith("generate"):
        del body["inputs"]
    async with http.post(path, json=body) as answer:
        found = await answer.json()
    told = found if path.endswith("generate") else found["parameters"]
    assert (told["queue_position"], told["estimated_start_s"]) == (3, 1.5)


async def test_tritons_client_hears_its_position_with_the_answer(gateway, admission):
    admission.outlooks["m"] = STARTS_SOON
    async with tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{gateway.grpc_port}") as client:
        result = await client.infer("m", [prompt()], parameters={"return_queue_position": True})
    assert result.as_numpy("text_output")[0] == b"hi 0 1 2 3"
    assert result.get_response().parameters["queue_position"].int64_param == 3
    assert result.get_response().parameters["estimated_start_s"].double_param == 1.5


async def test_tritons_client_hears_its_position_on_a_stream_while_it_waits(gateway, admission):
    admission.outlooks["m"] = STARTS_SOON
    admission.hold()
    stream = tritonclient.grpc.aio.InferInput("stream", [1], "BOOL")
    stream.set_data_from_numpy(np.array([True]))

    async def requests():
        yield {"model_name": "m", "inputs": [prompt(), stream], "parameters": {"return_queue_position": True}}

    async with tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{gateway.grpc_port}") as client:
        results = client.stream_infer(requests())
        first, _ = await anext(results)
        assert first.get_response().parameters["queue_position"].int64_param == 3
        assert first.as_numpy("text_output") is None
        admission.release_held()
        texts = [result.as_numpy("text_output")[0] async for result, _ in results]
    assert texts == [b" 0", b" 1", b" 2", b" 3"]


REFUSALS = [
    (NoCapacity("full", retry_after_s=2.5), 429, "3"),
    (AdmissionTimeout("late", retry_after_s=0.1), 504, "1"),
    (LoadFailed("died", retry_after_s=1.0), 503, "1"),
    (LoadFailed("truncated"), 503, None),
]


@pytest.mark.parametrize(("error", "status", "after"), REFUSALS)
@pytest.mark.parametrize("path", ["/v2/models/m/generate", "/v2/models/m/generate_stream"])
async def test_http_says_when_to_come_back(http, admission, path, error, status, after):
    admission.refuse(error)
    async with http.post(path, json=BODY) as answer:
        assert (answer.status, answer.headers.get("Retry-After")) == (status, after)
        assert await answer.json() == {"error": str(error)}


@pytest.mark.parametrize(("error", "status", "after"), REFUSALS)
async def test_openais_client_hears_when_to_come_back(client, admission, error, status, after):
    admission.refuse(error)
    with pytest.raises(openai.APIStatusError) as caught:
        await client.completions.create(model="m", prompt="hi")
    assert (caught.value.status_code, caught.value.response.headers.get("retry-after")) == (status, after)


async def test_openais_client_comes_back_by_itself(client, admission):
    admission.refuse(NoCapacity("full", retry_after_s=0.01))
    answer = await client.with_options(max_retries=1).completions.create(model="m", prompt="hi")
    assert answer.choices[0].text == " 0 1 2 3"


async def test_grpc_says_when_to_come_back(stub, admission):
    admission.refuse(NoCapacity("full", retry_after_s=2.5))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(infer_request())
    metadata = dict(caught.value.trailing_metadata())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert metadata["retry-after"] == "3"
    assert b"google.rpc.RetryInfo" in metadata["grpc-status-details-bin"]


async def test_grpc_says_nothing_where_asking_again_is_no_remedy(stub):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(infer_request(model="nope"))
    assert not {"retry-after", "grpc-status-details-bin"} & dict(caught.value.trailing_metadata()).keys()


async def test_a_stream_that_ends_by_its_error_says_when_to_come_back(stub, admission):
    admission.refuse(NoCapacity("full", retry_after_s=2.5))
    call = stub.ModelStreamInfer(iter([infer_request()]), metadata=(("triton_grpc_error", "true"),))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert dict(caught.value.trailing_metadata())["retry-after"] == "3"


async def test_an_error_within_a_stream_says_when_to_come_back(stub, admission):
    admission.refuse(NoCapacity("full", retry_after_s=2.5))
    messages = [message async for message in stub.ModelStreamInfer(iter([infer_request(flag("stream"))]))]
    assert [message.error_message for message in messages] == ["full"]
    assert messages[0].infer_response.parameters["retry_after_s"].double_param == 2.5
