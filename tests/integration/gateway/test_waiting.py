"""Waiting honestly: what unmodified clients hear when it is not going to happen."""

from __future__ import annotations

import aiohttp
import grpc
import openai
import pytest
from openai import AsyncOpenAI
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed, NoCapacity
from tests.unit.gateway.samples import flag, infer_request

BODY = {"text_input": "hi"}


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
