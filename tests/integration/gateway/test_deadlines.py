"""A deadline for each request, as unmodified clients give and meet it."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import grpc
import numpy as np
import openai
import pytest
import tritonclient.grpc.aio
import tritonclient.http
from openai import AsyncOpenAI
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.unit.gateway.samples import flag, infer_request

SOON = {"Triton-Request-Timeout-Ms": "150"}


def prompt(module):
    tensor = module.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"hi"], dtype=object))
    return tensor


@pytest.fixture
async def http(manual_gateway):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{manual_gateway.http_port}") as session:
        yield session


async def given_up(by_hand, admission):
    """The server was told to stop, and its place is free again."""
    call = await asyncio.wait_for(by_hand.call(0), 5)
    for _ in range(500):
        if call.severed is not None and not admission.held:
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.mark.parametrize("path", ["generate", "generate_stream", "infer"])
async def test_http_answers_504_and_gives_the_request_up(http, by_hand, admission, path):
    text = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hi"]}
    body = {"inputs": [text]} if path == "infer" else {"text_input": "hi"}
    async with http.post(f"/v2/models/m/{path}", json=body, headers=SOON) as answer:
        assert answer.status == 504
        assert "longer than the 0.15 s that it was given" in (await answer.json())["error"]
    assert await given_up(by_hand, admission)


async def test_a_wait_that_outlasts_the_request_is_504_before_anything_runs(http, by_hand, admission):
    admission.hold()
    async with http.post("/v2/models/m/generate", json={"text_input": "hi"}, headers=SOON) as answer:
        assert answer.status == 504
    assert not by_hand.calls


async def test_after_the_first_event_the_deadline_is_an_event(http, by_hand, admission):
    posting = http.post("/v2/models/m/generate_stream", json={"text_input": "hi", "stream": True, "timeout": 500_000})
    answering = asyncio.ensure_future(posting)
    (await asyncio.wait_for(by_hand.call(0), 5)).tokens(0, 5)
    answer = await answering
    assert answer.status == 200
    *_, last = [event for event in (await answer.text()).split("\n\n") if event]
    assert "longer than the 0.5 s" in json.loads(last.removeprefix("data: "))["error"]
    assert await given_up(by_hand, admission)


@pytest.mark.parametrize("path", ["/v2/models/m/generate", "/v1/completions"])
async def test_a_header_that_is_no_time_is_a_bad_request(http, path):
    body = {"text_input": "hi"} if path.startswith("/v2") else {"model": "m", "prompt": "hi"}
    async with http.post(path, json=body, headers={"Triton-Request-Timeout-Ms": "soon"}) as answer:
        assert answer.status == 400
        assert "whole milliseconds" in str((await answer.json())["error"])


async def test_tritons_http_client_gives_microseconds(manual_gateway, by_hand, admission):
    def act():
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{manual_gateway.http_port}") as client:
            client.infer("m", [prompt(tritonclient.http)], timeout=150_000)

    with pytest.raises(InferenceServerException, match=r"longer than the 0\.15 s") as caught:
        await asyncio.to_thread(act)
    assert caught.value.status() == "504"
    assert await given_up(by_hand, admission)


@pytest.mark.parametrize("stream", [False, True])
async def test_openais_client_gives_a_header(manual_gateway, by_hand, admission, stream):
    url = f"http://127.0.0.1:{manual_gateway.http_port}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError, match=r"longer than the 0\.15 s") as caught:
            await client.completions.create(model="m", prompt="hi", stream=stream, extra_headers=SOON)
    assert (caught.value.status_code, caught.value.code) == (504, "timeout")
    assert await given_up(by_hand, admission)


@pytest.mark.parametrize("bound", [{"client_timeout": 0.15}, {"timeout": 150_000}])
async def test_tritons_grpc_client_gives_a_deadline_or_microseconds(manual_gateway, by_hand, admission, bound):
    async with tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{manual_gateway.grpc_port}") as client:
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("m", [prompt(tritonclient.grpc.aio)], **bound)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert await given_up(by_hand, admission)


async def test_the_deadline_of_one_request_leaves_its_stream_and_the_others_alone(manual_gateway, by_hand):
    bounded = infer_request(flag("stream"), client_id="bounded")
    bounded.parameters["timeout"].int64_param = 150_000
    requests = [bounded, infer_request(flag("stream"), client_id="patient")]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{manual_gateway.grpc_port}") as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(requests))
        first = await asyncio.wait_for(call.read(), 5)
        assert first.infer_response.id == "bounded"
        assert "longer than the 0.15 s" in first.error_message
        for upstream_call in by_hand.calls:
            if upstream_call.severed is None:
                upstream_call.tokens(0, 1, finish_reason="stop")
        second = await asyncio.wait_for(call.read(), 5)
    assert (second.infer_response.id, second.error_message) == ("patient", "")
