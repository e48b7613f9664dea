"""Clients that hold connections open and do nothing, and others that send too much: each ends, a good one is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.gateway.fake_upstream import token_response
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.settings import ConnectionLimits
from tests.integration.gateway.conftest import SETTINGS
from tests.unit.gateway.samples import infer_request

SOON_S = 10.0
BODY = json.dumps({"text_input": "hi"}).encode()
GENERATE = b"POST /v2/models/m/generate HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def start(repository, admission, upstream):
    """A gateway with limits of its own."""

    @asynccontextmanager
    async def started(upstream=upstream, **limits):
        gateway = Gateway(
            catalogue=Catalogue(repository),
            admission=admission,
            upstream=upstream,
            settings=replace(SETTINGS, connections=ConnectionLimits(**limits)),
        )
        await gateway.start()
        try:
            yield gateway
        finally:
            await gateway.stop()

    return started


@asynccontextmanager
async def connected(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def to_the_end(reader):
    """What is still said, and how long it takes until the other side has closed."""
    began_s = time.monotonic()
    said = b""
    with contextlib.suppress(ConnectionResetError):
        said = await asyncio.wait_for(reader.read(), SOON_S)
    return said, time.monotonic() - began_s


async def a_good_request_is_served(gateway):
    url = f"http://127.0.0.1:{gateway.http_port}/v2/models/m/generate"
    async with aiohttp.ClientSession() as session, session.post(url, data=BODY) as answer:
        assert (answer.status, (await answer.json())["text_output"]) == (200, "hi 0 1 2 3")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ModelInfer(infer_request(), timeout=SOON_S)).outputs


async def test_an_http_connection_that_asks_nothing_is_closed(start):
    async with start(idle_timeout_s=0.2) as gateway:
        async with connected(gateway.http_port) as (reader, _):
            assert await to_the_end(reader) == (b"", pytest.approx(0.2, abs=0.5))
        await a_good_request_is_served(gateway)


async def test_headers_that_come_byte_by_byte_do_not_keep_a_connection(start):
    async with start(idle_timeout_s=0.4) as gateway:
        async with connected(gateway.http_port) as (reader, writer):
            ended = asyncio.ensure_future(to_the_end(reader))
            for byte in GENERATE * 10:
                if ended.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)
            said, took_s = await ended
        assert said == b""
        assert took_s < 2
        await a_good_request_is_served(gateway)


async def test_a_second_request_on_a_connection_has_no_more_time_than_the_first(start):
    async with start(idle_timeout_s=0.3) as gateway, connected(gateway.http_port) as (reader, writer):
        writer.write(GENERATE % len(BODY) + BODY)
        assert b" 200 OK" in await reader.readline()
        await reader.readuntil(b"}")
        writer.write(b"POST /v2/mod")
        assert (await to_the_end(reader))[1] < 2


async def test_a_body_that_does_not_come_is_a_timeout(start):
    async with start(body_timeout_s=0.2) as gateway:
        async with connected(gateway.http_port) as (reader, writer):
            writer.write(GENERATE % len(BODY) + BODY[:-1])
            assert b" 408 " in await asyncio.wait_for(reader.readline(), SOON_S)
            headers = await reader.readuntil(b"\r\n\r\n")
            assert b"application/json" in headers
            assert json.loads(await reader.readuntil(b"}")) == {"error": "the request's body did not come in time"}
        await a_good_request_is_served(gateway)


async def test_openais_shape_of_a_body_that_does_not_come(start):
    async with start(body_timeout_s=0.2) as gateway, connected(gateway.http_port) as (reader, writer):
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n{")
        assert b" 408 " in await asyncio.wait_for(reader.readline(), SOON_S)
        await reader.readuntil(b"\r\n\r\n")
        assert b'"type":"invalid_request_error"' in await reader.readuntil(b"}")


@pytest.mark.parametrize("headers", [b"X-Long: " + b"a" * 20_000, b"\r\n".join(b"X-%d: a" % n for n in range(200))])
async def test_too_much_of_headers_is_refused(start, headers):
    async with start() as gateway:
        async with connected(gateway.http_port) as (reader, writer):
            writer.write(b"GET /v2 HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n\r\n")
            assert (await to_the_end(reader))[0].split()[1] == b"400"
        await a_good_request_is_served(gateway)


async def test_connections_beyond_the_limit_are_closed_and_leave_room_when_others_end(start, caplog):
    async with start(max_http_connections=2) as gateway:
        async with connected(gateway.http_port), connected(gateway.http_port):
            await asyncio.sleep(0.1)  # until the gateway has taken both
            for _ in range(3):
                async with connected(gateway.http_port) as (reader, _):
                    assert (await to_the_end(reader))[0] == b""
        said = [record.getMessage().split()[0] for record in caplog.records if record.name.endswith("http_site")]
        assert said == ["connections_refused"]
        await asyncio.sleep(0.1)
        await a_good_request_is_served(gateway)


async def test_a_client_that_takes_nothing_gives_its_place_back(start, by_hand, admission):
    async with start(upstream=by_hand, stalled_timeout_s=0.5) as gateway, connected(gateway.http_port) as (_, writer):
        body = json.dumps({"text_input": "hi", "stream": True}).encode()
        writer.write(GENERATE.replace(b"generate", b"generate_stream") % len(body) + body)
        call = await asyncio.wait_for(by_hand.call(0), SOON_S)
        writer.transport.pause_reading()
        position, began_s = 0, time.monotonic()
        while call.severed is None and time.monotonic() - began_s < SOON_S:
            while call.unread < 4:
                call.send(token_response(attempt=0, first_position=position, output_ids=[1], text="x" * 200_000))
                position += 1
            await asyncio.sleep(0.001)
        assert call.severed is not None
        assert admission.held == []


async def test_a_grpc_connection_that_says_nothing_is_closed(start):
    async with start(handshake_timeout_s=0.3) as gateway:
        async with connected(gateway.grpc_port) as (reader, _):
            assert (await to_the_end(reader))[1] < 5
        await a_good_request_is_served(gateway)


async def test_calls_beyond_the_limit_are_refused_and_let_in_when_others_end(start):
    async with start(max_grpc_calls=2) as gateway:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            idle = [stub.ModelStreamInfer() for _ in range(2)]
            for call in idle:
                await call.write(infer_request())
                await call.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ServerLive(pb.ServerLiveRequest(), timeout=SOON_S)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            for call in idle:
                await call.done_writing()
                assert await call.code() is grpc.StatusCode.OK
        await a_good_request_is_served(gateway)


async def test_too_much_of_metadata_is_refused(start):
    async with start() as gateway:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ServerLive(pb.ServerLiveRequest(), metadata=(("x-long", "a" * 50_000),), timeout=SOON_S)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await a_good_request_is_served(gateway)
