"""The agent's gRPC: what a scheduler is told of engines, devices and tiers, and whose orders count."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from serverless_triton.backend import agent_pb2
from serverless_triton.backend.agent import NodeAgent
from serverless_triton.backend.agent_service import AgentService
from serverless_triton.backend.devices import Devices
from serverless_triton.backend.messages import Loaded
from serverless_triton.backend.prefetches import Prefetches
from tests.unit.backend.test_agent import PARAMETERS, node, settle

PROMISE = agent_pb2.Exactness(kind="best_effort", reason="mode is fast", contract="0" * 64)


class Aborted(Exception):
    """What gRPC does with an abort."""


class HandContext:
    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Aborted(code.name)


def service_of(agent: NodeAgent, status: Any = None) -> AgentService:
    tiers: Any = SimpleNamespace(status=status, dram_bytes=1)
    agent.pool.has_forked = True
    return AgentService("n", agent, tiers, Prefetches(Path("nowhere")))


def image(path: str, state: str, **others: int) -> SimpleNamespace:
    return SimpleNamespace(**{"path": path, "state": state, "bytes": 9, "leases": 0, "pinned": False, **others})


def store_status(measured: dict[str, float], *images: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(
        leased_bytes=0,
        bandwidth_bytes_per_second=measured,
        throttle_bytes_per_second=50,
        remote_throttle_bytes_per_second=20,
        ssd_cache=SimpleNamespace(urls=("https://host/m",)),
        images=images,
    )


async def test_what_an_engine_promises_is_told_by_its_start_and_shown_from_then_on():
    agent, pool = node()
    service = service_of(agent)
    request = agent_pb2.StartRequest(epoch=1, replica="r1", model="m", parameters=PARAMETERS)
    context: Any = None
    starting = asyncio.ensure_future(service.Start(request, context))
    await settle()
    assert not service._state().replicas[0].HasField("exactness")

    exactness = {"kind": PROMISE.kind, "reason": PROMISE.reason, "contract": PROMISE.contract}
    loaded = Loaded(replica="r1", tier="ssd", bytes=10, spans=[], exactness=exactness)
    pool.workers[0].channel.inbox.put_nowait(loaded)

    assert (await starting).exactness == PROMISE
    assert service._state().replicas[0].exactness == PROMISE


async def test_each_device_is_shown_with_what_is_granted_of_it():
    agent, _ = node()
    agent.devices = Devices({"cuda:0": 100, "cuda:1": 100}, parts_of=lambda spec: [70])
    service, context = service_of(agent), HandContext()
    request = agent_pb2.StartRequest(epoch=1, replica="r1", model="m", parameters=PARAMETERS)
    starting = asyncio.ensure_future(service.Start(request, context))  # type: ignore[arg-type]
    await settle()
    state = service._state()
    (on,) = state.replicas[0].devices
    assert [(one.id, one.name, one.memory_bytes) for one in state.devices] == [(0, "cuda:0", 100), (1, "cuda:1", 100)]
    assert [one.granted_bytes for one in state.devices] == [70 if one.id == on else 0 for one in state.devices]
    starting.cancel()


async def test_a_tier_that_was_never_read_is_as_fast_as_its_throttle():
    agent, _ = node()
    state = service_of(agent, store_status({"ssd": 40.0}))._state()
    assert (state.ssd_bytes_per_second, state.remote_bytes_per_second) == (40.0, 20.0)


async def test_checkpoints_are_shown_in_dram_on_their_way_and_as_copies():
    agent, _ = node()
    images = [image("/a", "ready", pinned=True), image("/b", "loading", read_bytes=4), image("/c", "evicting")]
    state = service_of(agent, store_status({}, *images))._state()
    assert [(one.checkpoint, one.pinned) for one in state.images] == [("/a", True)]
    assert [(one.checkpoint, one.bytes, one.read_bytes) for one in state.transfers] == [("/b", 9, 4)]
    assert list(state.copies) == ["https://host/m"]


@pytest.mark.parametrize(
    ("call", "request_of"),
    [
        ("Prefetch", agent_pb2.PrefetchRequest),
        ("Evict", agent_pb2.EvictRequest),
        ("Pin", agent_pb2.PinRequest),
    ],
)
async def test_an_earlier_leader_moves_no_checkpoints(call: str, request_of: Any):
    agent, _ = node()
    agent.check_epoch(2)
    with pytest.raises(Aborted, match="FAILED_PRECONDITION"):
        await getattr(service_of(agent), call)(request_of(epoch=1, checkpoint="/a"), HandContext())


async def test_a_prefetch_without_a_store_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serverless_triton.loader.client.Session", _no_store)
    agent, _ = node()
    with pytest.raises(Aborted, match="UNAVAILABLE"):
        await service_of(agent).Prefetch(agent_pb2.PrefetchRequest(epoch=1, checkpoint="/a"), HandContext())  # type: ignore[arg-type]


def _no_store(*_: object) -> None:
    from serverless_triton.loader.errors import StoreUnavailable

    raise StoreUnavailable("no store answers")
