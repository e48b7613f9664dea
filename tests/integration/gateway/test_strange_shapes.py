"""Shapes that are huge, negative or overflow: refused by name over every protocol, and a good request served after."""

from __future__ import annotations

import json

import aiohttp
import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.unit.gateway.samples import flag, infer_request

LARGEST = 2**63 - 1
SHAPES = (
    [2**62],
    [2**33, 2**33],
    [-1],
    [-(2**63)],
    [LARGEST],
    [LARGEST] * 8,
    [2**31, 2**31, 4],
    [1] * 1000,
    [2**20] * 50,
)
CONTENTS = (b"", b"\x07\0\0\0")


@pytest.fixture
async def http(gateway):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.http_port}") as session:
        yield session


@pytest.fixture
async def stub(gateway):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def strange(shape, content, **values):
    """A request with one tensor of that shape, its content in bytes or in values."""
    request = pb.ModelInferRequest(model_name="m", id="strange")
    tensor = request.inputs.add(name="input_ids", datatype="INT32", shape=shape)
    if values:
        tensor.contents.int_contents.extend(values["numbers"])
    else:
        request.raw_input_contents.append(content)
    return request


@pytest.mark.parametrize("shape", SHAPES)
async def test_over_http(http, shape):
    tensor = {"name": "input_ids", "datatype": "INT32", "shape": shape}
    for numbers in ([], [7]):
        async with http.post("/v2/models/m/infer", json={"inputs": [{**tensor, "data": numbers}]}) as answer:
            assert (answer.status, list(await answer.json())) == (400, ["error"])
    for content in CONTENTS:
        sized = {**tensor, "parameters": {"binary_data_size": len(content)}}
        head = json.dumps({"inputs": [sized]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        async with http.post("/v2/models/m/infer", data=head + content, headers=headers) as answer:
            assert (answer.status, list(await answer.json())) == (400, ["error"])
    async with http.post("/v2/models/m/generate", json={"text_input": "hi"}) as answer:
        assert (answer.status, (await answer.json())["text_output"]) == (200, "hi 0 1 2 3")


@pytest.mark.parametrize("shape", SHAPES)
async def test_over_grpc(stub, shape):
    wrong = [strange(shape, content) for content in CONTENTS]
    wrong += [strange(shape, b"", numbers=numbers) for numbers in ([], [7])]
    for request in wrong:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    messages = [m async for m in stub.ModelStreamInfer(iter([*wrong, infer_request(flag("stream"))]), timeout=10)]
    assert [m.infer_response.id for m in messages if m.error_message] == ["strange"] * len(wrong)
    assert len([m for m in messages if m.infer_response.id == "c1"]) == 4
