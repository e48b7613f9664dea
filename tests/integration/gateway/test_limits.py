"""Rates and quotas of keys, as unmodified clients hear of them."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import aiohttp
import grpc
import openai
import pytest
import yaml
from openai import AsyncOpenAI
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.gateway.gateway import Gateway
from tests.integration.gateway.conftest import SETTINGS
from tests.unit.gateway.samples import infer_request

TOKENS = 5  # of every request: one of the prompt, four of the answer
QUOTAS = {
    "slow": {"requests_per_second": 0.01},
    "small": {"tokens_per_minute": TOKENS},
    "daily": {"tokens_per_day": TOKENS},
    "few": {"open_calls": 1},
    "other": {},
}
PROMPT = {"text_input": "hi"}


@pytest.fixture
async def gateway(repository, admission, upstream, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "models": ["*"], **quota}
        for name, quota in QUOTAS.items()
    ]
    file.write_text(yaml.safe_dump({"keys": keys}))
    gateway = Gateway(
        catalogue=Catalogue(repository),
        admission=admission,
        upstream=upstream,
        settings=replace(SETTINGS, keys_file=file),
    )
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
async def http(gateway):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.http_port}") as session:
        yield session


@pytest.fixture
async def stub(gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def metadata(key):
    return (("authorization", f"Bearer {key}"),)


def openai_client(gateway, key):
    return AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.http_port}/v1", api_key=key, max_retries=0)


async def generate(http, key):
    async with http.post("/v2/models/m/generate", json=PROMPT, headers={"X-API-Key": key}) as answer:
        return answer.status, dict(answer.headers), await answer.json()


@pytest.mark.parametrize(
    ("key", "words"),
    [("slow", "0.01 requests a second"), ("small", "5 tokens a minute"), ("daily", "5 tokens a day")],
)
async def test_http_says_when_to_come_again(http, key, words):
    assert (await generate(http, key))[0] == 200
    status, headers, body = await generate(http, key)
    assert status == 429
    assert 1 <= int(headers["Retry-After"]) <= 24 * 3600
    assert words in body["error"]
    assert (await generate(http, "other"))[0] == 200


async def test_grpc_says_when_to_come_again(stub):
    await stub.ModelInfer(infer_request(), metadata=metadata("slow"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(infer_request(), metadata=metadata("slow"))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 90 <= int(dict(caught.value.trailing_metadata())["retry-after"]) <= 100


async def test_each_request_of_a_client_stream_counts(stub):
    requests = iter([infer_request(client_id="1"), infer_request(client_id="2")])
    call = stub.ModelStreamInfer(requests, metadata=metadata("slow"))
    found = [await call.read(), await call.read()]
    assert sorted(bool(message.error_message) for message in found) == [False, True]
    assert await call.code() is grpc.StatusCode.OK


async def test_a_request_that_was_wrong_counts_for_nothing(http, stub):
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(infer_request(model="nope"), metadata=metadata("slow"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert (await generate(http, "slow"))[0] == 200


async def test_what_asks_for_no_tokens_costs_no_request(http):
    for _ in range(5):
        async with http.get("/v2/models/m", headers={"X-API-Key": "slow"}) as answer:
            assert answer.status == 200
    assert (await generate(http, "slow"))[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/v2/models/m", "/v2/models/stats", "/v2/cluster/outlook/m", "/v2/repository/index", "/v1/models", "/v2/nothing"],
)
async def test_calls_are_counted_ten_times_as_cheaply_whatever_they_ask(http, path):
    async def ask(key):
        method = "POST" if path.endswith("index") else "GET"
        async with http.request(method, path, headers={"X-API-Key": key}) as answer:
            return answer.status, await answer.text()

    assert 429 not in [(await ask("slow"))[0] for _ in range(10)]
    status, words = await ask("slow")
    assert status == 429
    assert "0.1 calls a second" in words
    assert (await ask("other"))[0] != 429


async def test_grpc_calls_are_counted_too(stub):
    index = pb.RepositoryIndexRequest()
    for _ in range(10):
        await stub.RepositoryIndex(index, metadata=metadata("slow"))
    with pytest.raises(grpc.aio.AioRpcError, match=r"0\.1 calls a second") as caught:
        await stub.RepositoryIndex(index, metadata=metadata("slow"))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.ServerLive(pb.ServerLiveRequest(), metadata=metadata("slow"))).live


async def test_wrong_requests_on_a_stream_are_counted_as_calls(stub):
    wrong = [infer_request(model="nope", client_id=str(number)) for number in range(10)]
    call = stub.ModelStreamInfer(iter(wrong), metadata=metadata("slow"))
    words = [message.error_message async for message in call]
    assert ["0.1 calls a second" in said for said in words].count(True) == 1


async def test_openai_hears_which_limit_it_was(gateway):
    for key, kind, code in (
        ("slow", "requests", "rate_limit_exceeded"),
        ("small", "tokens", "rate_limit_exceeded"),
        ("daily", "insufficient_quota", "insufficient_quota"),
    ):
        async with openai_client(gateway, key) as client:
            await client.completions.create(model="m", prompt="hi")
            with pytest.raises(openai.RateLimitError) as caught:
                await client.completions.create(model="m", prompt="hi")
            assert (caught.value.type, caught.value.code) == (kind, code)
            assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_choices_of_one_request_are_one_request_with_all_their_tokens(gateway):
    async with openai_client(gateway, "slow") as client:
        assert len((await client.completions.create(model="m", prompt="hi", n=3)).choices) == 3
    async with openai_client(gateway, "small") as client:
        await client.completions.create(model="m", prompt="hi", n=3)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(model="m", prompt="hi")
        assert int(caught.value.response.headers["retry-after"]) > 2 * 60


async def test_a_key_that_holds_its_calls_open_is_refused_and_leaves_others_and_health_alone(stub, http):
    few, other = (("x-api-key", "few"),), {"x-api-key": "other"}
    call = stub.ModelStreamInfer(metadata=few)
    await call.write(infer_request())
    await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ServerMetadata(pb.ServerMetadataRequest(), metadata=few)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1 calls at the same time" in caught.value.details()
    async with http.get("/v2", headers={"x-api-key": "few"}) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
    async with http.get("/v2", headers=other) as answer:
        assert answer.status == 200
    assert (await stub.ServerLive(pb.ServerLiveRequest(), metadata=few)).live
    await call.done_writing()
    assert await asyncio.wait_for(call.code(), 10.0) is grpc.StatusCode.OK
    async with http.get("/v2", headers={"x-api-key": "few"}) as answer:
        assert answer.status == 200
