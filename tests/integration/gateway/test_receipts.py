"""Receipts on request, with unmodified clients."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import numpy as np
import pytest
import tritonclient.grpc.aio
import tritonclient.http
from openai import AsyncOpenAI
from tritonclient.utils import InferenceServerException

from serverless_triton.scheduler.gateway.fake_upstream import FakeEngine

ASKING = {"triton-return-receipt": "true"}
MAYBE = {"triton-return-receipt": "maybe"}


def tensor(module, name, datatype, value):
    found = module.InferInput(name, [1], datatype)
    found.set_data_from_numpy(np.array([value], dtype=object if datatype == "BYTES" else bool))
    return found


@pytest.fixture
async def http(gateway):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.http_port}") as session:
        yield session


@pytest.fixture
async def client(gateway):
    async with tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{gateway.grpc_port}") as client:
        yield client


def receipts_of(result):
    return json.loads(result.get_response().parameters["receipt"].string_param)


@pytest.mark.parametrize("asking", [{"parameters": {"return_receipt": True}}, {"headers": ASKING}])
async def test_grpc_by_parameter_or_metadata(client, upstream, asking):
    upstream.script(FakeEngine(deaths=[2]))
    result = await client.infer("m", [tensor(tritonclient.grpc.aio, "text_input", "BYTES", b"hi")], **asking)
    receipts = receipts_of(result)
    assert [one["kind"] for one in receipts] == ["warm", "resumed"]
    assert {one["stream"] for one in receipts} == {result.get_response().parameters["stream_id"].string_param}
    assert all(one["critical_path"] for one in receipts)


async def test_a_grpc_stream_has_it_with_its_first_response(client):
    given = [
        tensor(tritonclient.grpc.aio, "text_input", "BYTES", b"hi"),
        tensor(tritonclient.grpc.aio, "stream", "BOOL", True),
    ]

    async def requests():
        yield {"model_name": "m", "inputs": given, "parameters": {"return_receipt": True}}
        yield {"model_name": "m", "inputs": given, "request_id": "unasked"}

    results = [result async for result, _ in client.stream_infer(requests())]
    with_receipt = [result for result in results if "receipt" in result.get_response().parameters]
    assert [receipts_of(result)[0]["kind"] for result in with_receipt] == ["warm"]
    assert with_receipt[0].as_numpy("text_output")[0] == b" 0"


async def test_tritons_http_client_has_it_among_the_parameters(gateway):
    def act():
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{gateway.http_port}") as client:
            prompt = tensor(tritonclient.http, "text_input", "BYTES", "hi")
            return client.infer("m", [prompt], headers=dict(ASKING)).get_response()  # it adds to them

    response = await asyncio.to_thread(act)
    (receipt,) = json.loads(response["parameters"]["receipt"])
    assert receipt["stream"] == response["parameters"]["stream_id"]


async def test_http_has_it_in_the_body_and_as_a_header(http):
    body = {"text_input": "hi", "return_receipt": True}
    async with http.post("/v2/models/m/generate", json=body) as answer:
        header, found = json.loads(answer.headers["Triton-Receipt"]), await answer.json()
        stream = answer.headers["Triton-Stream-Id"]
    (receipt,) = found["receipt"]
    assert receipt.pop("spans")
    assert header == receipt
    assert (receipt["stream"], receipt["kind"], receipt["model"]) == (stream, "warm", "m")
    async with http.get(f"/v2/cluster/receipts/{stream}") as answer:
        (kept,) = (await answer.json())["receipts"]
    assert kept["actual_s"] == receipt["actual_s"]


async def test_events_have_it_with_the_first_one(http):
    body = {"text_input": "hi", "stream": True}
    async with http.post("/v2/models/m/generate_stream", json=body, headers=ASKING) as answer:
        assert json.loads(answer.headers["Triton-Receipt"])["kind"] == "warm"
        events = [json.loads(event.removeprefix("data: ")) for event in (await answer.text()).split("\n\n") if event]
    assert ["receipt" in event for event in events] == [True, False, False, False]


@pytest.mark.parametrize("stream", [False, True])
async def test_openais_client_has_it_as_a_header(gateway, stream):
    url = f"http://127.0.0.1:{gateway.http_port}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        asking = client.completions.with_raw_response
        answer = await asking.create(model="m", prompt="hi", stream=stream, extra_headers=ASKING)
        receipt = json.loads(answer.headers["Triton-Receipt"])
        assert (receipt["kind"], receipt["stream"]) == ("warm", answer.headers["Triton-Stream-Id"])
        several = await asking.create(model="m", prompt="hi", n=2, extra_headers=ASKING)
        assert "Triton-Receipt" not in several.headers
        plain = await asking.create(model="m", prompt="hi")
        assert "Triton-Receipt" not in plain.headers


async def test_a_wish_that_is_neither_yes_nor_no_is_a_bad_request(http, client):
    async with http.post("/v1/completions", json={"model": "m", "prompt": "hi"}, headers=MAYBE) as answer:
        assert answer.status == 400
    with pytest.raises(InferenceServerException, match="must be true or false") as caught:
        await client.infer("m", [tensor(tritonclient.grpc.aio, "text_input", "BYTES", b"hi")], headers=MAYBE)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
