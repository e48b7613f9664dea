"""Whatever is sent over gRPC is answered, wrong requests with a typed error, and the next one is served.

`BAD_REQUESTS=10000 pytest tests/integration/gateway/test_bad_messages.py` sends more of them.
"""

from __future__ import annotations

import asyncio
import os

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.integration.gateway.bad_messages import bad_message
from tests.unit.gateway.samples import flag, infer_request

COUNT = int(os.environ.get("BAD_REQUESTS", "2000"))
SERVICE = "/inference.GRPCInferenceService"
TYPED = {"INVALID_ARGUMENT", "NOT_FOUND"}
UNREADABLE = ("INTERNAL", "Unable to parse request")
GARBAGE = b"\xff" * 8
WAIT_S = 10.0


@pytest.fixture
async def channel(gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def unary(channel, data, method="ModelInfer"):
    return channel.unary_unary(f"{SERVICE}/{method}")(data, timeout=WAIT_S)


def stream(channel, *messages):
    read = pb.ModelStreamInferResponse.FromString
    call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer", response_deserializer=read)
    return call(iter(messages), timeout=WAIT_S)


async def answer_of(channel, data, *, streamed):
    """Status and words, or what was said on the stream."""
    try:
        if not streamed:
            await unary(channel, data)
            return "OK", ""
        said = [message.error_message async for message in stream(channel, data)]
        return ("INVALID_ARGUMENT", said[-1]) if said[-1] else ("OK", "")
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details()


async def test_every_one_is_answered_and_a_good_one_is_served_right_after(gateway, channel, stub, caplog):
    answered = 0
    for seed in range(COUNT):
        code, words = await answer_of(channel, bad_message(seed), streamed=seed % 2 == 1)
        assert code in {"OK", *TYPED} or (code, words) == UNREADABLE, (seed, code, words)
        assert words != "internal error", seed
        answered += code != "OK"
        if seed % 10 == 0:
            assert (await stub.ModelInfer(infer_request())).outputs[0].name == "text_output"
    assert answered > COUNT // 2
    assert len(gateway.journal) == 0
    assert not caplog.records


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "RepositoryModelLoad", "TraceSetting"])
async def test_bytes_that_are_no_message_end_a_call_as_tritons_do(channel, method):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary(channel, GARBAGE, method)
    assert (caught.value.code().name, caught.value.details()) == UNREADABLE


async def test_bytes_that_are_no_message_end_a_stream_after_the_answers_to_those_before(channel):
    call = stream(channel, infer_request(flag("stream")).SerializeToString(), GARBAGE)
    heard = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(collect(call, heard), WAIT_S)
    assert (caught.value.code().name, caught.value.details()) == UNREADABLE
    assert heard[-1].infer_response.parameters["triton_final_response"].bool_param


async def collect(call, heard):
    async for message in call:
        heard.append(message)


async def test_a_method_that_is_not_there_is_unimplemented(channel):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary(channel, b"", "Nope")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
