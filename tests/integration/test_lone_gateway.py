"""The gateway of the benchmarks is one as a scheduler has it."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.perf.gateway.lone_gateway import lone_gateway
from serverless_triton.scheduler import catalogue
from tests.unit.gateway.samples import add_model


async def test_a_request_for_a_model_that_is_known_costs_the_disk_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, take_stamp = [], catalogue.take_stamp
    monkeypatch.setattr(catalogue, "take_stamp", lambda folder: looked.append(folder) or take_stamp(folder))
    add_model(tmp_path, "m")
    async with (
        lone_gateway(tmp_path, "127.0.0.1:9") as gateway,
        grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(5):
            assert (await stub.ModelReady(pb.ModelReadyRequest(name="m"))).ready
    assert looked == [tmp_path / "m"]
