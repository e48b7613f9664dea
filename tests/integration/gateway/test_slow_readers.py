"""A client that takes its stream more slowly than a replica makes it: the replica waits, the gateway keeps little."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.scheduler.gateway.fake_upstream import token_response
from tests.unit.gateway.samples import flag, infer_request

MESSAGES, MESSAGE_BYTES = 200, 1_000_000
FEW_BYTES = 50 * MESSAGE_BYTES


@pytest.fixture
async def stub(manual_gateway):
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{manual_gateway.grpc_port}", options=options) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


async def settled(value):
    """What it is once it has not changed for a while."""
    last, since = value(), 0
    while since < 20:
        await asyncio.sleep(0.02)
        now = value()
        last, since = now, since + 1 if now == last else 0
    return last


async def test_a_grpc_client_that_reads_nothing_stops_its_replica_and_then_gets_everything_in_order(stub, by_hand):
    call = stub.ModelStreamInfer(iter([infer_request(flag("stream"))]), timeout=60)
    replica = await asyncio.wait_for(by_hand.call(0), 5)
    for position in range(MESSAGES):
        reason = "stop" if position == MESSAGES - 1 else None
        text = f"{position:4}".ljust(MESSAGE_BYTES)
        replica.send(
            token_response(attempt=0, first_position=position, output_ids=[1], text=text, finish_reason=reason)
        )

    unread = await settled(lambda: replica.unread)

    assert (MESSAGES - unread) * MESSAGE_BYTES < FEW_BYTES
    heard = [message.infer_response.raw_output_contents[0][4:8] async for message in call]
    assert [int(text) for text in heard if text.strip()] == list(range(MESSAGES))


async def test_a_grpc_client_that_reads_one_stream_slowly_does_not_slow_its_others(stub, by_hand):
    slow = stub.ModelStreamInfer(iter([infer_request(flag("stream"))]), timeout=60)
    replica = await asyncio.wait_for(by_hand.call(0), 5)
    for position in range(MESSAGES):
        replica.send(token_response(attempt=0, first_position=position, output_ids=[1], text="x" * MESSAGE_BYTES))
    assert await settled(lambda: replica.unread) > 0

    quick = stub.ModelStreamInfer(iter([infer_request(flag("stream"))]), timeout=60)
    (await asyncio.wait_for(by_hand.call(1), 5)).tokens(0, 1, 2, finish_reason="stop")
    texts = [message.infer_response.raw_output_contents[0][4:] async for message in quick]

    assert b"".join(texts) == b" 1 2"
    slow.cancel()
