"""Clients that close their side of a connection or stream and listen on: what they asked is answered, the rest ends."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from tests.unit.gateway.samples import flag, infer_request

SOON_S = 10.0
POST = b"POST /v2/models/m/generate HTTP/1.1\r\nHost: a\r\nContent-Length: 22\r\n\r\n"


@pytest.fixture
async def channel(gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        yield channel


@pytest.fixture
async def stub(channel):
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


async def to_the_end_of(port, sent):
    """What comes after `sent` and the end of this side, until the other side has closed too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    writer.write_eof()
    said = b""
    with contextlib.suppress(ConnectionResetError):
        said = await asyncio.wait_for(reader.read(), SOON_S)
    writer.close()
    return said


async def a_good_one_is_served(gateway, stub):
    assert (await stub.ModelInfer(infer_request(), timeout=SOON_S)).outputs
    assert len(gateway.journal) == 0


async def test_a_grpc_stream_that_is_closed_after_its_requests_gets_all_answers(gateway, stub):
    call = stub.ModelStreamInfer(timeout=SOON_S)
    for name in ("a", "b"):
        await call.write(infer_request(flag("stream"), client_id=name))
    await call.done_writing()
    ids = [message.infer_response.id async for message in call]
    assert (ids.count("a"), ids.count("b")) == (4, 4)
    await a_good_one_is_served(gateway, stub)


async def test_a_grpc_stream_that_is_closed_before_a_request_ends(gateway, stub):
    call = stub.ModelStreamInfer(timeout=SOON_S)
    await call.done_writing()
    assert [message async for message in call] == []
    assert await call.code() is grpc.StatusCode.OK
    await a_good_one_is_served(gateway, stub)


@pytest.mark.parametrize("sent", [b"", POST[:20], POST, POST + b'{"text_in'])
async def test_an_http_connection_that_is_closed_within_a_request_is_closed(gateway, admission, stub, sent):
    assert b" 200 " not in await to_the_end_of(gateway.http_port, sent)
    assert not admission.held
    await a_good_one_is_served(gateway, stub)


@pytest.mark.parametrize("sent", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_grpc_connection_that_is_closed_on_one_side_is_closed(gateway, stub, sent):
    await to_the_end_of(gateway.grpc_port, sent)
    await a_good_one_is_served(gateway, stub)
