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
from tests.unit.gateway.samples import flag, infer_request

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
            said, took_s = await to_the_end(reader)
            assert said == b""
            assert 0.1 < took_s < 2
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
        said = [record.getMessage().split()[0] for record in caplog.records if record.name.endswith("gateway.door")]
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


@asynccontextmanager
async def taking_nothing(gateway, by_hand, request):
    """A client's gRPC stream whose answers fill what may be under way to it, and the call to the server."""
    small = (("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}", options=small) as channel:
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(timeout=60.0)
        await stream.write(request)
        call = await asyncio.wait_for(by_hand.call(0), SOON_S)
        for position in range(40):
            call.send(token_response(attempt=0, first_position=position, output_ids=[1], text="x" * 300_000))
        yield stream, call


async def all_of(stream):
    return [message async for message in stream]


async def free_again(admission):
    for _ in range(int(SOON_S * 100)):
        if not admission.held:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_deadline_frees_the_place_of_a_grpc_client_that_takes_nothing(start, by_hand, admission):
    request = infer_request(flag("stream"))
    request.parameters["timeout"].int64_param = 300_000
    async with start(upstream=by_hand) as gateway, taking_nothing(gateway, by_hand, request) as (stream, call):
        assert await free_again(admission)
        assert call.unread  # so it was not for want of something to send
        assert not stream.done()


async def test_a_grpc_client_that_takes_nothing_loses_its_call(start, by_hand, admission):
    async with (
        start(upstream=by_hand, stalled_timeout_s=0.3) as gateway,
        taking_nothing(gateway, by_hand, infer_request(flag("stream"))) as (stream, call),
    ):
        assert await free_again(admission)
        assert call.severed is not None
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(all_of(stream), SOON_S)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "took nothing of its answers for 0.3 s" in caught.value.details()


async def test_a_grpc_client_that_takes_its_answers_late_but_takes_them_keeps_its_call(start, by_hand):
    async with (
        start(upstream=by_hand, stalled_timeout_s=0.5) as gateway,
        taking_nothing(gateway, by_hand, infer_request(flag("stream"))) as (stream, call),
    ):
        call.send(token_response(attempt=0, first_position=40, output_ids=[1], text="end", finish_reason="stop"))
        for _ in range(41):
            await asyncio.wait_for(stream.read(), SOON_S)
            await asyncio.sleep(0.03)
        await stream.done_writing()
        assert await asyncio.wait_for(stream.code(), SOON_S) is grpc.StatusCode.OK


async def test_a_grpc_connection_that_says_nothing_is_closed(start):
    async with start(handshake_timeout_s=0.3) as gateway:
        async with connected(gateway.grpc_port) as (reader, _):
            assert (await to_the_end(reader))[1] < 5
        await a_good_request_is_served(gateway)


@pytest.mark.parametrize("method", ["ServerLive", "ModelMetadata", "ModelInfer"])
async def test_a_unary_call_whose_message_does_not_come_ends_and_leaves_its_turn(start, method):
    async with (
        start(body_timeout_s=0.3, max_grpc_calls=1) as gateway,
        grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel,
    ):
        call = channel.stream_unary(f"/inference.GRPCInferenceService/{method}")(timeout=60.0)
        assert await asyncio.wait_for(call.code(), SOON_S) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await call.details() == "the call's message did not come in time"
        await a_good_request_is_served(gateway)


async def test_a_call_that_anybody_may_make_has_no_long_time_for_its_message(start):
    async with start() as gateway, grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        call = channel.stream_unary("/grpc.health.v1.Health/Check")(timeout=60.0)
        assert await asyncio.wait_for(call.code(), SOON_S) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await call.details() == "the call's message did not come in time"


async def test_a_unary_call_that_ends_without_a_message_is_answered(start):
    async with start() as gateway, grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(timeout=60.0)
        await call.done_writing()
        assert await asyncio.wait_for(call.code(), SOON_S) is grpc.StatusCode.INTERNAL


def test_one_connection_cannot_have_all_calls():
    limits = ConnectionLimits()
    assert 2 * limits.max_calls_per_connection <= limits.max_grpc_calls


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


@pytest.mark.parametrize("limit", ["max_http_connections_per_address", "max_http_connections"])
async def test_an_address_that_has_its_connections_leaves_the_others_theirs(start, limit):
    async with start(**{limit: 2}) as gateway:
        async with connected(gateway.http_port), connected(gateway.http_port):
            await asyncio.sleep(0.1)  # until the gateway has taken both
            async with connected(gateway.http_port) as (reader, _):
                assert (await to_the_end(reader))[0] == b""
            assert await served_from("127.0.0.2", gateway.http_port) is (limit == "max_http_connections_per_address")
        await asyncio.sleep(0.1)
        assert await served_from("127.0.0.1", gateway.http_port)


async def served_from(address, port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
    try:
        return b" 200 " in await asyncio.wait_for(reader.readline(), SOON_S)
    except ConnectionResetError:
        return False
    finally:
        writer.close()


async def test_an_address_that_has_its_calls_is_refused_until_one_ends(start):
    async with start(max_grpc_calls_per_address=1) as gateway:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            open_call = stub.ModelStreamInfer()
            await open_call.write(infer_request())
            await open_call.read()
            with pytest.raises(grpc.aio.AioRpcError, match="this address has too many calls") as caught:
                await stub.ServerLive(pb.ServerLiveRequest(), timeout=SOON_S)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await open_call.done_writing()
            assert await open_call.code() is grpc.StatusCode.OK
        await a_good_request_is_served(gateway)


async def test_grpc_connections_beyond_the_limit_are_closed(start):
    async with start(max_grpc_connections=2) as gateway:
        async with connected(gateway.grpc_port), connected(gateway.grpc_port):
            await asyncio.sleep(0.1)  # until the gateway has taken both
            async with connected(gateway.grpc_port) as (reader, _):
                assert (await to_the_end(reader))[0] == b""
        await asyncio.sleep(0.1)
        await a_good_request_is_served(gateway)


async def test_too_much_of_metadata_is_refused(start):
    async with start() as gateway:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ServerLive(pb.ServerLiveRequest(), metadata=(("x-long", "a" * 50_000),), timeout=SOON_S)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await a_good_request_is_served(gateway)
