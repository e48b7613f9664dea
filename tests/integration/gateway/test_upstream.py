"""GrpcUpstream against a server that breaks in every way a Triton does."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.backend.node_secret import NodeSecret
from serverless_triton.scheduler.gateway.fake_upstream import token_response
from serverless_triton.scheduler.gateway.upstream import GrpcUpstream, UpstreamError
from serverless_triton.scheduler.node_links import NodeLinks


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One token, then what `behaviour` says."""

    def __init__(self):
        self.behaviour = "end"
        self.cancelled = asyncio.Event()
        self.metadata = ()

    async def ModelStreamInfer(self, requests, context):  # noqa: N802
        self.metadata = tuple(context.invocation_metadata())
        async for _ in requests:
            response = token_response(attempt=0, first_position=0, output_ids=[1], text="x")
            yield pb.ModelStreamInferResponse(infer_response=response)
        if self.behaviour == "abort":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        if self.behaviour == "reset":
            await context.abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2")
        if self.behaviour == "error":
            yield pb.ModelStreamInferResponse(error_message="boom")
        try:
            await asyncio.sleep(30 if self.behaviour == "hang" else 0)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@pytest.fixture
async def server():
    servicer = Server()
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    servicer.server = server
    await server.start()
    yield servicer
    await server.stop(0)


@pytest.fixture
async def upstream():
    upstream = GrpcUpstream()
    yield upstream
    await upstream.close()


def infer(upstream, server):
    return upstream.infer(server.address, pb.ModelInferRequest(model_name="m"))


async def test_the_servers_secret_is_shown(server, tmp_path):
    NodeSecret.create(tmp_path / "secret")
    links = NodeLinks.of(tmp_path / "secret")
    upstream = GrpcUpstream(links)
    assert (await infer(upstream, server).read()).outputs
    assert set(links.triton_metadata) <= set(server.metadata)
    await upstream.close()


async def test_responses_then_the_end(upstream, server):
    call = infer(upstream, server)
    assert (await call.read()).outputs
    assert await call.read() is None
    assert "triton_grpc_error" not in dict(server.metadata)


@pytest.mark.parametrize(
    ("behaviour", "code", "words", "breaks"),
    [
        ("abort", "INVALID_ARGUMENT", "no", False),
        ("error", "UNAVAILABLE", "boom", True),
        ("reset", "UNAVAILABLE", "RST_STREAM", True),
    ],
)
async def test_errors_keep_their_words_and_tritons_own_are_the_replicas(
    upstream, server, behaviour, code, words, breaks
):
    server.behaviour = behaviour
    call = infer(upstream, server)
    await call.read()
    with pytest.raises(UpstreamError, match=words) as caught:
        await call.read()
    assert caught.value.code == code
    assert caught.value.breaks_replica is breaks


async def test_a_server_that_stops_mid_stream_breaks_the_replica(upstream, server):
    server.behaviour = "hang"
    call = infer(upstream, server)
    await call.read()
    reading = asyncio.ensure_future(call.read())
    await asyncio.sleep(0)
    await server.server.stop(0)
    with pytest.raises(UpstreamError) as caught:
        await reading
    assert caught.value.breaks_replica


async def test_a_server_that_is_not_there_breaks_the_replica(upstream):
    call = upstream.infer("127.0.0.1:9", pb.ModelInferRequest())
    with pytest.raises(UpstreamError) as caught:
        await call.read()
    assert caught.value.breaks_replica


async def test_severing_wakes_the_reader_with_the_reason_and_cancels(upstream, server):
    server.behaviour = "hang"
    call = infer(upstream, server)
    await call.read()
    reading = asyncio.ensure_future(call.read())
    await asyncio.sleep(0.01)
    call.sever(UpstreamError("UNAVAILABLE", "worker died"))
    call.sever(UpstreamError("UNAVAILABLE", "another reason"))
    with pytest.raises(UpstreamError, match="worker died"):
        await reading
    with pytest.raises(UpstreamError, match="worker died"):
        await call.read()
    await asyncio.wait_for(server.cancelled.wait(), 5)


async def test_a_cancelled_reader_stays_cancelled(upstream, server):
    server.behaviour = "hang"
    call = infer(upstream, server)
    await call.read()
    reading = asyncio.ensure_future(call.read())
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    call.sever(UpstreamError("CANCELLED", "over"))
    await asyncio.wait_for(server.cancelled.wait(), 5)
