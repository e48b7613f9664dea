"""Requests that together hold more than there is room for, as unmodified clients hear of it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import grpc
import openai
import pytest
from openai import AsyncOpenAI
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.gateway.gateway import Gateway
from tests.integration.gateway.conftest import SETTINGS
from tests.unit.gateway.samples import flag, infer_request

LARGE = b"x" * 40_000  # two of them do not fit
WAIT_S = 10.0


@pytest.fixture
async def gateway(repository, admission, by_hand):
    gateway = Gateway(
        catalogue=Catalogue(repository),
        admission=admission,
        upstream=by_hand,
        settings=replace(SETTINGS, max_bytes_in_flight=2**16),
    )
    await gateway.start()
    yield gateway
    await gateway.stop()


@asynccontextmanager
async def calling(gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@asynccontextmanager
async def posting(gateway, text):
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{gateway.http_port}") as session,
        session.post("/v2/models/m/generate", json={"text_input": text.decode()}) as answer,
    ):
        yield answer


async def test_a_call_beside_which_there_is_no_room_is_exhausted_until_the_other_has_ended(gateway, by_hand):
    async with calling(gateway) as stub:
        first = stub.ModelInfer(infer_request(text=LARGE), timeout=WAIT_S)
        served = await asyncio.wait_for(by_hand.call(0), WAIT_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(infer_request(text=LARGE), timeout=WAIT_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.trailing_metadata()["retry-after"] == "1"
        served.tokens(0, 1, finish_reason="stop")
        await first
        second = stub.ModelInfer(infer_request(text=LARGE), timeout=WAIT_S)
        (await asyncio.wait_for(by_hand.call(1), WAIT_S)).tokens(0, 1, finish_reason="stop")
        assert (await second).outputs


async def test_requests_of_a_stream_are_refused_one_by_one(gateway, by_hand):
    async with calling(gateway) as stub:
        requests = [infer_request(flag("stream"), text=LARGE, client_id=name) for name in ("a", "b")]
        call = stub.ModelStreamInfer(iter(requests), timeout=WAIT_S)
        refused = await call.read()
        assert (refused.infer_response.id, refused.infer_response.parameters["retry_after_s"].double_param) == ("b", 1)
        assert "hold all of 65536 bytes" in refused.error_message
        (await by_hand.call(0)).tokens(0, 1, finish_reason="stop")
        assert (await call.read()).infer_response.id == "a"


async def test_a_body_is_counted_while_it_comes(gateway, by_hand):
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    head = b"POST /v2/models/m/generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head + b"%x\r\n" % len(LARGE) + LARGE + b"\r\n")  # and never its end
    await writer.drain()
    await asyncio.sleep(0.2)  # until the gateway has read it
    async with posting(gateway, LARGE) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        assert "hold all of 65536 bytes" in (await answer.json())["error"]
    writer.close()
    await asyncio.sleep(0.2)
    asked = asyncio.ensure_future(_status(gateway))
    (await asyncio.wait_for(by_hand.call(0), WAIT_S)).tokens(0, 1, finish_reason="stop")
    assert await asked == 200


async def _status(gateway):
    async with posting(gateway, LARGE) as answer:
        return answer.status


async def test_openais_clients_hear_of_a_limit(gateway, by_hand):
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    body = json.dumps({"text_input": LARGE.decode()}).encode()
    writer.write(b"POST /v2/models/m/generate HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await asyncio.wait_for(by_hand.call(0), WAIT_S)
    async with AsyncOpenAI(
        base_url=f"http://127.0.0.1:{gateway.http_port}/v1", api_key="none", max_retries=0
    ) as client:
        with pytest.raises(openai.RateLimitError, match="hold all of 65536 bytes"):
            await client.completions.create(model="m", prompt=LARGE.decode())
    writer.close()
