"""Requests for other backends' models pass through a gateway as they are, and are never repeated."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.scheduler.admission import FakeAdmission
from serverless_triton.scheduler.gateway.tensors import add_input, add_output, number_tensor
from serverless_triton.scheduler.gateway.upstream import GrpcUpstream
from tests.integration.gateway.conftest import make_gateway


@pytest.fixture
async def stub(manual_gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{manual_gateway.grpc_port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def asking(**parameters: int) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="onnx", id="mine")
    add_input(request, number_tensor("x", "FP32", [1.0, 2.0]))
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    return request


def answer() -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="onnx", model_version="1", id="mine")
    add_output(response, number_tensor("y", "FP32", [3.0]))
    response.parameters["said"].string_param = "by the model"
    return response


async def test_request_and_answer_are_what_was_sent(stub, by_hand, admission):
    asked = asyncio.ensure_future(stub.ModelInfer(asking(anything=7)))
    call = await by_hand.call(0)
    assert call.request == asking(anything=7)
    call.send(answer())
    call.end()
    assert await asked == answer()
    assert admission.held == []


async def test_what_fails_after_it_was_sent_is_not_repeated(stub, by_hand, admission):
    asked = asyncio.ensure_future(stub.ModelInfer(asking()))
    (await by_hand.call(0)).fail("UNAVAILABLE", "the server went away")
    with pytest.raises(grpc.aio.AioRpcError, match="the server went away") as failed:
        await asked
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(by_hand.calls) == 1
    assert (admission.held, admission.broken) == ([], [])


@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_does_not_hear_where_a_server_stood_that_is_gone(repository, streams):
    gateway = make_gateway(repository, FakeAdmission({"s0": "127.0.0.1:9"}), GrpcUpstream())
    await gateway.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        if streams:
            client = stub.ModelStreamInfer()
            await client.write(asking())
            words = (await client.read()).error_message
            client.cancel()
        else:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.ModelInfer(asking())
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            words = failed.value.details()
    await gateway.stop()
    assert words == "the connection to its server broke"


async def test_a_replica_whose_process_ended_is_given_back_as_broken(stub, by_hand, admission):
    asked = asyncio.ensure_future(stub.ModelInfer(asking()))
    (await by_hand.call(0)).fail("INTERNAL", "Stub process 'onnx_0' is not healthy.")
    with pytest.raises(grpc.aio.AioRpcError):
        await asked
    assert admission.broken == [admission.admitted[0].replica]


async def test_a_refusal_on_a_stream_leaves_the_stream_open(stub, by_hand):
    client = stub.ModelStreamInfer()
    await client.write(asking())
    call = await by_hand.call(0)
    call.refuse("not these")
    assert (await client.read()).error_message == "not these"
    await client.write(asking())
    (await by_hand.call(1)).send(answer())
    assert (await client.read()).infer_response == answer()
    client.cancel()


async def test_a_client_that_goes_away_ends_its_call_and_gives_its_place_back(stub, by_hand, admission):
    client = stub.ModelStreamInfer()
    await client.write(asking())
    call = await by_hand.call(0)
    client.cancel()
    for _ in range(500):
        if call.severed is not None and not admission.held:
            break
        await asyncio.sleep(0.01)
    assert call.severed is not None
    assert (admission.held, admission.broken) == ([], [])


async def test_a_request_may_bound_its_time(stub, by_hand, admission):
    with pytest.raises(grpc.aio.AioRpcError, match=r"longer than the 0\.05 s") as late:
        await stub.ModelInfer(asking(timeout=50_000))
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert admission.held == []


async def test_its_priority_counts_where_places_are_scarce(stub, by_hand, admission):
    asked = asyncio.ensure_future(stub.ModelInfer(asking(priority=3)))
    await by_hand.call(0)
    assert admission.claims == [("", 3)]
    asked.cancel()


async def test_a_clients_memory_is_not_its_servers(stub, by_hand):
    request = asking()
    request.inputs[0].parameters["shared_memory_region"].string_param = "secret"
    with pytest.raises(grpc.aio.AioRpcError, match="secret"):
        await stub.ModelInfer(request)
    assert by_hand.calls == []


async def test_a_priority_that_is_no_number_is_refused(stub, by_hand):
    request = asking()
    request.parameters["priority"].string_param = "first"
    with pytest.raises(grpc.aio.AioRpcError, match="expected int64_param"):
        await stub.ModelInfer(request)
    assert by_hand.calls == []


@pytest.mark.parametrize("shape", [[2**62], [2**63 - 1], [-(2**63)], [0], [3]])
@pytest.mark.parametrize("unary", [True, False])
async def test_a_shape_that_its_bytes_are_not_of_reaches_no_server(stub, by_hand, admission, shape, unary):
    wrong = asking()
    wrong.inputs[0].shape[:] = shape
    if unary:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ModelInfer(wrong)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    else:
        client = stub.ModelStreamInfer()
        await client.write(wrong)
        assert (await client.read()).error_message.startswith("[request id: mine] ")
        client.cancel()
    assert (by_hand.calls, admission.admitted) == ([], [])
