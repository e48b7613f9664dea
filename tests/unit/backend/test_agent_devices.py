"""The agent of a node with several GPUs, its workers played by hand."""

from __future__ import annotations

import asyncio

import pytest

from serverless_triton.backend.agent import NodeAgent
from serverless_triton.backend.devices import Devices
from serverless_triton.backend.messages import Acquire, Load, ModelSpec, WorkerHello
from serverless_triton.backend.replica import StartFailed
from serverless_triton.loader.errors import CheckpointNotFound
from tests.unit.backend.test_agent import PARAMETERS, HandChannel, HandPool, HandWorker, settle

PARTS = {"large": [40, 60, 60], "small": [30]}


def parts_of(spec: ModelSpec) -> list[int]:
    if spec.checkpoint not in PARTS:
        raise CheckpointNotFound(f"there is no file {spec.checkpoint}; check the path of the checkpoint")
    return PARTS[spec.checkpoint]


def node() -> tuple[NodeAgent, HandPool]:
    pool = HandPool()
    return NodeAgent(pool, Devices({"cuda:0": 100, "cuda:1": 100}, parts_of)), pool  # type: ignore[arg-type]


async def start(agent: NodeAgent, pool: HandPool, replica: str, checkpoint: str) -> HandWorker:
    begun = asyncio.ensure_future(agent.start(replica, checkpoint, PARAMETERS | {"checkpoint": checkpoint}))
    begun.add_done_callback(lambda f: f.cancelled() or f.exception())  # no worker here ever loads
    await settle()
    return pool.workers[-1]


def shares_of(worker: HandWorker) -> list[tuple[str, int, int]]:
    load = worker.channel.sent[-1]
    assert isinstance(load, Load)
    return load.shares


async def test_a_worker_is_told_which_parts_go_to_which_device():
    agent, pool = node()
    worker = await start(agent, pool, "r1", "large")
    assert shares_of(worker) == [("cuda:0", 2, 100), ("cuda:1", 1, 60)]


async def test_a_model_that_fits_beside_another_shares_its_device():
    agent, pool = node()
    await start(agent, pool, "r1", "large")
    assert shares_of(await start(agent, pool, "r2", "small")) == [("cuda:1", 1, 30)]
    assert agent.devices.granted_bytes == 190


async def test_a_model_that_the_devices_have_no_room_for_takes_none_of_them():
    agent, pool = node()
    await start(agent, pool, "r1", "small")
    await start(agent, pool, "r2", "small")
    refused = agent.start("r3", "large", PARAMETERS | {"checkpoint": "large"})
    with pytest.raises(StartFailed, match="160 bytes of device memory asked for, the largest of its 3 parts 60") as no:
        await asyncio.wait_for(refused, 1.0)
    assert no.value.code == "RESOURCE_EXHAUSTED"
    assert agent.devices.granted_bytes == 60


async def test_memory_on_all_devices_is_free_when_the_worker_has_gone():
    agent, pool = node()
    await start(agent, pool, "r1", "large")
    await agent.release("r1")
    assert agent.devices.granted_bytes == 0


async def test_a_start_waits_until_every_device_has_room():
    agent, pool = node()
    first = await start(agent, pool, "r1", "large")
    first.dies_at_once = False
    release = asyncio.ensure_future(agent.release("r1"))
    await settle()
    await start(agent, pool, "r2", "large")
    assert len(pool.workers) == 1
    first.ended.set_result(None)
    await release
    await settle()
    assert shares_of(pool.workers[-1]) == [("cuda:0", 2, 100), ("cuda:1", 1, 60)]


async def test_a_new_agent_counts_an_adopted_replica_where_it_is(monkeypatch: pytest.MonkeyPatch):
    agent, pool = node()
    worker = HandWorker()
    monkeypatch.setattr("serverless_triton.backend.agent.WorkerLink", lambda channel: worker)
    shares = [["cuda:1", 2, 100], ["cuda:0", 1, 60]]  # as JSON brings them
    parameters = PARAMETERS | {"checkpoint": "large"}
    hello = WorkerHello(replica="r1", model="large", parameters=parameters, shares=shares)  # type: ignore[arg-type]
    await agent.welcome_worker(worker.channel, hello)  # type: ignore[arg-type]
    assert shares_of(await start(agent, pool, "r2", "small")) == [("cuda:0", 1, 30)]


async def test_an_adopted_replica_needs_no_look_at_files_that_may_have_gone(monkeypatch: pytest.MonkeyPatch):
    agent, _ = node()
    worker = HandWorker()
    monkeypatch.setattr("serverless_triton.backend.agent.WorkerLink", lambda channel: worker)
    parameters = PARAMETERS | {"checkpoint": "/gone"}
    hello = WorkerHello(replica="r1", model="m", parameters=parameters, shares=[("cuda:1", 3, 70)])
    await agent.welcome_worker(worker.channel, hello)  # type: ignore[arg-type]
    assert (agent.devices.granted_bytes, agent.replicas["r1"].device_bytes) == (70, 70)


async def test_shares_that_come_after_the_stub_replace_what_was_assumed(monkeypatch: pytest.MonkeyPatch):
    agent, pool = node()
    worker, stub = HandWorker(), HandChannel()
    monkeypatch.setattr("serverless_triton.backend.agent.WorkerLink", lambda channel: worker)
    parameters = PARAMETERS | {"checkpoint": "small"}
    acquire = Acquire(model="small", parameters=parameters, replica="r1", attached=True)
    staying = asyncio.ensure_future(agent.welcome_stub(stub, acquire))  # type: ignore[arg-type]
    await settle()
    hello = WorkerHello(replica="r1", model="small", parameters=parameters, shares=[("cuda:1", 1, 30)])
    await agent.welcome_worker(worker.channel, hello)  # type: ignore[arg-type]
    assert shares_of(await start(agent, pool, "r2", "large")) == [("cuda:0", 2, 100), ("cuda:1", 1, 60)]
    staying.cancel()


async def test_a_checkpoint_that_is_not_there_is_refused_before_any_worker_is_taken():
    agent, pool = node()
    with pytest.raises(StartFailed, match="there is no file /gone") as failed:
        await agent.start("r1", "m", PARAMETERS | {"checkpoint": "/gone"})
    assert (failed.value.code, pool.workers) == ("INVALID_ARGUMENT", [])
