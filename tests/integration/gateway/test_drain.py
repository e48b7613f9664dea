"""A gateway that is told to stop."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiohttp
import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.gateway.gateway import Gateway
from tests.integration.gateway.conftest import SETTINGS, make_gateway
from tests.unit.gateway.samples import flag, infer_request


@pytest.fixture
async def own_gateway(repository, admission, by_hand):
    """Stopped by the test itself."""
    gateway = make_gateway(repository, admission, by_hand)
    await gateway.start()
    return gateway


async def test_running_streams_may_end(own_gateway, by_hand, admission):
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{own_gateway.grpc_port}") as channel,
        aiohttp.ClientSession(f"http://127.0.0.1:{own_gateway.http_port}") as session,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([infer_request(flag("stream"))]))
        posting = asyncio.ensure_future(session.post("/v2/models/m/generate", json={"text_input": "hi"}))
        upstream_calls = [await asyncio.wait_for(by_hand.call(index), 5) for index in range(2)]
        stopping = asyncio.ensure_future(own_gateway.stop())
        await asyncio.sleep(0.05)
        for upstream_call in upstream_calls:
            upstream_call.tokens(0, 1, finish_reason="stop")
        assert (await call.read()).infer_response.parameters["triton_final_response"].bool_param
        assert (await posting).status == 200
        await stopping
    assert not admission.held
    assert by_hand.closed


async def test_streams_that_take_too_long_are_cut_off(own_gateway, by_hand, admission):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{own_gateway.grpc_port}") as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(
            iter([infer_request(flag("stream"))])
        )
        upstream_call = await asyncio.wait_for(by_hand.call(0), 5)
        await asyncio.wait_for(own_gateway.stop(), 5)
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await call.read()
    assert upstream_call.severed is not None
    assert not admission.held


async def test_a_port_that_is_taken_fails_the_start(own_gateway, repository, admission, by_hand):
    for taken in ({"http_port": own_gateway.http_port}, {"grpc_port": own_gateway.grpc_port}):
        second = Gateway(
            catalogue=Catalogue(repository), admission=admission, upstream=by_hand, settings=replace(SETTINGS, **taken)
        )
        with pytest.raises((OSError, RuntimeError)):
            await second.start()
        await second.stop()
    await own_gateway.stop()


async def test_a_unary_client_that_goes_away_cancels_upstream(own_gateway, by_hand, admission):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{own_gateway.grpc_port}") as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(infer_request())
        upstream_call = await asyncio.wait_for(by_hand.call(0), 5)
        assert isinstance(upstream_call.request, pb.ModelInferRequest)
        call.cancel()
        for _ in range(500):
            if upstream_call.severed is not None:
                break
            await asyncio.sleep(0.01)
    assert upstream_call.severed is not None
    assert not admission.held
    await own_gateway.stop()
