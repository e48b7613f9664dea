"""The agent's state machine, its workers and stubs played by hand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from serverless_triton.backend.agent import ANSWER_PATIENCE_S, STUB_PATIENCE_S, NodeAgent
from serverless_triton.backend.channel import ChannelClosed
from serverless_triton.backend.devices import CPU, Devices
from serverless_triton.backend.epochs import StaleEpoch
from serverless_triton.backend.messages import (
    Acquire,
    Attached,
    Failed,
    Granted,
    Load,
    Loaded,
    Message,
    Serve,
    WorkerHello,
)
from serverless_triton.backend.replica import StartFailed

PARAMETERS = {"checkpoint": "/models/a", "checkpoint_bytes": "10", "kv_cache_bytes": "60"}


class HandChannel:
    """The far end in a test's hand."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self.peer_pid = os.getpid()
        self.is_gone = False

    async def send(self, message: Message, descriptors: Any = ()) -> None:
        if self.is_gone:
            raise ChannelClosed("broken pipe")
        self.sent.append(message)

    async def receive(self) -> Message:
        message = await self.inbox.get()
        if message is None:
            raise ChannelClosed("end of stream")
        return message

    def close(self) -> None:
        self.inbox.put_nowait(None)


class HandWorker:
    """A worker process that ends when the test or the agent says so."""

    def __init__(self) -> None:
        self.channel = HandChannel()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pid = 4711
        self.dies_at_once = True

    async def kill(self) -> None:
        if self.dies_at_once and not self.ended.done():
            self.ended.set_result(None)
        await asyncio.shield(self.ended)

    def load(self, replica: str) -> None:
        self.channel.inbox.put_nowait(Loaded(replica=replica, tier="ssd", bytes=10, spans=[]))


class HandPool:
    def __init__(self) -> None:
        self.workers: list[HandWorker] = []
        self.learned: list[dict[str, str]] = []

    async def take(self, timeout_s: float) -> HandWorker:
        self.workers.append(HandWorker())
        return self.workers[-1]

    def learn(self, models: list[dict[str, str]]) -> None:
        self.learned += models


class HandTimer:
    """Rings when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.calls.append((delay_s, callback))

    def ring(self) -> float:
        delay_s, callback = self.calls.pop(0)
        callback()
        return delay_s


def node(budget: int = 100) -> tuple[NodeAgent, HandPool]:
    pool = HandPool()
    return NodeAgent(pool, Devices({CPU: budget})), pool  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def started(agent: NodeAgent, pool: HandPool, replica: str = "r1") -> HandWorker:
    start = asyncio.ensure_future(agent.start(replica, "m", PARAMETERS))
    await settle()
    pool.workers[-1].load(replica)
    await start
    return pool.workers[-1]


async def attached(agent: NodeAgent, replica: str = "r1") -> tuple[HandChannel, asyncio.Task[None]]:
    stub = HandChannel()
    request = Acquire(model="m", parameters=PARAMETERS, replica=replica)
    task = asyncio.ensure_future(agent.welcome_stub(stub, request))  # type: ignore[arg-type]
    await settle()
    return stub, task


async def test_a_start_loads_an_idle_worker_and_says_where_the_bytes_came_from():
    agent, pool = node()
    start = asyncio.ensure_future(agent.start("r1", "m", PARAMETERS))
    await settle()
    assert pool.workers[0].channel.sent == [Load(replica="r1", model="m", parameters=PARAMETERS)]
    pool.workers[0].load("r1")
    loaded, stub_came_s = await start
    assert (loaded.tier, stub_came_s) == ("ssd", None)
    assert pool.learned == [PARAMETERS]


async def test_a_start_asked_for_twice_is_one_start():
    agent, pool = node()
    both = [asyncio.ensure_future(agent.start("r1", "m", PARAMETERS)) for _ in range(2)]
    await settle()
    pool.workers[0].load("r1")
    assert len({id(loaded) for loaded, _ in await asyncio.gather(*both)}) == 1
    assert len(pool.workers) == 1


async def test_memory_is_granted_before_anything_is_allocated():
    agent, pool = node(budget=100)
    await started(agent, pool)
    with pytest.raises(StartFailed, match="60 bytes of device memory asked for; free are 40 on cpu") as caught:
        await agent.start("r2", "m", PARAMETERS)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert len(pool.workers) == 1


async def test_a_released_replica_gives_its_memory_back_when_its_worker_is_gone():
    agent, pool = node()
    worker = await started(agent, pool)
    await agent.release("r1")
    assert worker.ended.done()
    assert agent.devices.granted_bytes == 0
    await agent.release("r1")


async def ending(agent: NodeAgent, pool: HandPool) -> HandWorker:
    """A replica that has ended, its worker's process not yet."""
    worker = await started(agent, pool)
    worker.dies_at_once = False
    stub, task = await attached(agent)
    stub.close()
    await task
    return worker


async def test_a_replicas_end_is_told_at_once_and_its_memory_when_it_is_free():
    agent, pool = node()
    worker = await ending(agent, pool)
    assert agent.replicas == {}
    assert agent.devices.granted_bytes == 60
    version = agent.version
    worker.ended.set_result(None)
    await asyncio.wait_for(agent.changed_since(version), 1.0)
    assert agent.devices.granted_bytes == 0


async def test_a_release_of_a_replica_that_is_ending_returns_when_its_memory_is_free():
    agent, pool = node()
    worker = await ending(agent, pool)
    release = asyncio.ensure_future(agent.release("r1"))
    await settle()
    assert not release.done()
    worker.ended.set_result(None)
    await asyncio.wait_for(release, 1.0)
    assert agent.devices.granted_bytes == 0


async def test_a_start_waits_for_memory_that_is_being_freed():
    agent, pool = node(budget=100)
    worker = await ending(agent, pool)
    start = asyncio.ensure_future(agent.start("r2", "m", PARAMETERS))
    await settle()
    assert len(pool.workers) == 1
    worker.ended.set_result(None)
    await settle()
    pool.workers[-1].load("r2")
    await asyncio.wait_for(start, 1.0)
    assert agent.devices.granted_bytes == 60


async def test_a_start_that_freed_memory_would_not_suffice_for_is_refused_at_once():
    agent, pool = node(budget=100)
    worker = await ending(agent, pool)
    with pytest.raises(StartFailed, match="101 bytes") as caught:
        await agent.start("r2", "m", PARAMETERS | {"kv_cache_bytes": "101"})
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    worker.ended.set_result(None)


async def test_of_two_starts_that_wait_for_the_same_memory_one_is_refused():
    agent, pool = node(budget=100)
    worker = await ending(agent, pool)
    starts = [asyncio.ensure_future(agent.start(replica, "m", PARAMETERS)) for replica in ("r2", "r3")]
    await settle()
    worker.ended.set_result(None)
    await settle()
    with pytest.raises(StartFailed, match="60 bytes of device memory asked for; free are 40 on cpu"):
        await starts[1]
    pool.workers[-1].load("r2")
    await asyncio.wait_for(starts[0], 1.0)
    assert list(agent.replicas) == ["r2"]


async def test_a_start_that_is_released_while_it_waits_for_memory_takes_none():
    agent, pool = node(budget=100)
    worker = await ending(agent, pool)
    start = asyncio.ensure_future(agent.start("r2", "m", PARAMETERS))
    await settle()
    await agent.release("r2")
    worker.ended.set_result(None)
    with pytest.raises(StartFailed, match="was released"):
        await start
    await settle()
    assert agent.devices.granted_bytes == 0
    assert len(pool.workers) == 1


async def test_a_loaded_replica_whose_stub_never_comes_is_released():
    """The scheduler that asked for it has died."""
    agent, pool = node()
    agent._call_later = timer = HandTimer()
    worker = await started(agent, pool)
    assert timer.ring() == STUB_PATIENCE_S
    await settle()
    assert agent.replicas == {}
    assert worker.ended.done()
    assert agent.devices.granted_bytes == 0


async def test_a_replica_whose_stub_has_come_or_waits_for_it_is_kept():
    agent, pool = node()
    agent._call_later = timer = HandTimer()
    start = asyncio.ensure_future(agent.start("r1", "m", PARAMETERS))
    await settle()
    await attached(agent)
    timer.ring()
    assert list(agent.replicas) == ["r1"]
    assert timer.calls == []
    pool.workers[0].load("r1")
    await start


async def test_of_a_replica_to_adopt_both_halves_must_come(monkeypatch: pytest.MonkeyPatch):
    agent, _ = node()
    agent._call_later = timer = HandTimer()
    worker = HandWorker()
    monkeypatch.setattr("serverless_triton.backend.agent.WorkerLink", lambda channel: worker)
    await agent.welcome_worker(worker.channel, WorkerHello(replica="r1", model="m", parameters=PARAMETERS))  # type: ignore[arg-type]
    timer.ring()
    await settle()
    assert agent.replicas == {}
    assert worker.ended.done()


async def test_a_stub_that_leaves_while_its_engine_loads_is_not_blamed_on_the_worker(
    caplog: pytest.LogCaptureFixture,
):
    agent, pool = node()
    worker = await started(agent, pool)
    stub = HandChannel()
    stub.is_gone = True
    with pytest.raises(StartFailed, match="the stub of 'm' died"):
        await agent._attach_stub(stub, Acquire(model="m", parameters=PARAMETERS, replica="r1"))  # type: ignore[arg-type]
    worker.channel.is_gone = True
    stub.is_gone = False
    with pytest.raises(StartFailed, match="the engine worker of 'm' died"):
        await agent._attach_stub(stub, Acquire(model="m", parameters=PARAMETERS, replica="r1"))  # type: ignore[arg-type]


async def test_a_replica_released_before_it_was_heard_of_never_starts():
    agent, pool = node()
    await agent.release("r1")
    with pytest.raises(StartFailed, match="has ended"):
        await agent.start("r1", "m", PARAMETERS)
    assert pool.workers == []


async def test_a_stub_gets_its_replica_and_both_get_a_socket():
    agent, pool = node()
    worker = await started(agent, pool)
    stub, _ = await attached(agent)
    assert stub.sent == [Granted(replica="r1")]
    assert worker.channel.sent[-1] == Serve(replica="r1")


async def test_a_stub_that_waits_for_its_engine_is_told_with_the_start():
    agent, pool = node()
    start = asyncio.ensure_future(agent.start("r1", "m", PARAMETERS))
    _, task = await attached(agent)
    pool.workers[0].load("r1")
    _, stub_came_s = await start
    assert stub_came_s is not None
    assert not task.done()


async def test_a_stub_that_nobody_announced_gets_a_new_replica():
    """Somebody loaded the model at Triton itself."""
    agent, pool = node()
    stub = HandChannel()
    request = Acquire(model="m", parameters=PARAMETERS)
    task = asyncio.ensure_future(agent.welcome_stub(stub, request))  # type: ignore[arg-type]
    await settle()
    (replica,) = agent.replicas
    pool.workers[0].load(replica)
    await settle()
    assert stub.sent == [Granted(replica=replica)]
    assert not task.done()


async def test_a_worker_that_refuses_a_model_fails_start_and_stub_with_the_reason():
    agent, pool = node()
    start = asyncio.ensure_future(agent.start("r1", "m", PARAMETERS))
    stub, task = await attached(agent)
    pool.workers[0].channel.inbox.put_nowait(Failed(code="INVALID_ARGUMENT", message="a.safetensors: is truncated"))
    with pytest.raises(StartFailed, match="truncated"):
        await start
    await task
    assert stub.sent == [Failed(code="INVALID_ARGUMENT", message="a.safetensors: is truncated")]
    assert agent.devices.granted_bytes == 0


async def test_a_dead_worker_ends_its_replica_and_watchers_hear_of_it():
    agent, pool = node()
    worker = await started(agent, pool)
    await attached(agent)
    version = agent.version
    worker.ended.set_result(None)
    await asyncio.wait_for(agent.changed_since(version), 1.0)
    assert agent.replicas == {}


async def test_a_dead_stub_ends_its_replica_and_its_worker():
    agent, pool = node()
    worker = await started(agent, pool)
    stub, task = await attached(agent)
    stub.close()
    await task
    assert agent.replicas == {}
    assert worker.ended.done()


async def test_an_older_schedulers_permits_are_refused():
    agent, _ = node()
    agent.check_epoch(5)
    agent.check_epoch(5)
    with pytest.raises(StaleEpoch, match="5 leads"):
        agent.check_epoch(4)


async def test_a_new_agent_adopts_a_replica_from_its_two_halves(monkeypatch: pytest.MonkeyPatch):
    agent, _ = node(budget=10)
    worker = HandWorker()
    monkeypatch.setattr("serverless_triton.backend.agent.WorkerLink", lambda channel: worker)
    exactness = {"kind": "exact", "reason": "proven", "contract": "0"}
    hello = WorkerHello(replica="r1", model="m", parameters=PARAMETERS, exactness=exactness)
    stub = HandChannel()
    request = Acquire(model="m", parameters=PARAMETERS, replica="r1", attached=True)
    task = asyncio.ensure_future(agent.welcome_stub(stub, request))  # type: ignore[arg-type]
    await settle()
    await agent.welcome_worker(worker.channel, hello)  # type: ignore[arg-type]
    replica = agent.replicas["r1"]
    assert replica.is_loaded
    assert replica.exactness == exactness
    assert replica.stub is not None
    assert agent.devices.granted_bytes == 60
    assert not task.done()
    await agent.release("r1")


async def test_two_models_share_a_device_when_both_fit():
    agent, pool = node(budget=100)
    await started(agent, pool)
    other = asyncio.ensure_future(agent.start("r2", "n", PARAMETERS | {"checkpoint": "/b", "kv_cache_bytes": "40"}))
    await settle()
    pool.workers[-1].load("r2")
    await other
    assert agent.devices.granted_bytes == 100
    with pytest.raises(StartFailed, match="1 bytes of device memory asked for; free are 0 on cpu"):
        await agent.start("r3", "o", PARAMETERS | {"kv_cache_bytes": "1"})
    assert list(agent.replicas) == ["r1", "r2"]


async def parked(agent: NodeAgent, pool: HandPool) -> tuple[HandChannel, asyncio.Task[None]]:
    """A stub whose replica r1 was parked."""
    await started(agent, pool)
    stub, task = await attached(agent)
    await agent.park("r1")
    return stub, task


async def waking(agent: NodeAgent, parameters: dict[str, str] = PARAMETERS) -> asyncio.Task[Any]:
    """A start of r2 on the stub that r1 left."""
    start = asyncio.ensure_future(agent.start("r2", "m", parameters, "r1"))
    await settle()
    return start


async def test_parking_frees_the_memory_and_keeps_the_stub():
    agent, pool = node()
    stub, task = await parked(agent, pool)
    assert pool.workers[0].ended.done()
    assert agent.replicas == {}
    assert agent.devices.granted_bytes == 0
    assert [(one.replica, one.model) for one in agent.parked] == [("r1", "m")]
    assert not task.done()
    await agent.park("r1")
    assert stub.sent == [Granted(replica="r1")]


async def test_a_parked_stub_gets_the_next_engine_and_the_start_ends_when_it_has_it():
    agent, pool = node()
    stub, _ = await parked(agent, pool)
    start = await waking(agent)
    assert list(agent.parked) == []
    pool.workers[-1].load("r2")
    await settle()
    assert stub.sent[-1] == Granted(replica="r2")
    assert pool.workers[-1].channel.sent[-1] == Serve(replica="r2")
    assert not start.done()
    assert not agent.replicas["r2"].is_attached
    stub.inbox.put_nowait(Attached(replica="r2"))
    loaded, stub_came_s = await start
    assert agent.replicas["r2"].is_attached
    assert [name for name, _, _ in loaded.spans] == ["stub.attach"]
    assert stub_came_s is None


async def test_a_stub_can_be_parked_again():
    agent, pool = node()
    stub, _ = await parked(agent, pool)
    start = await waking(agent)
    pool.workers[-1].load("r2")
    stub.inbox.put_nowait(Attached(replica="r2"))
    await start
    await agent.park("r2")
    assert [one.replica for one in agent.parked] == ["r2"]


async def test_a_stub_that_does_not_answer_fails_the_start():
    agent, pool = node()
    await parked(agent, pool)
    agent._call_later = timer = HandTimer()
    start = await waking(agent)
    pool.workers[-1].load("r2")
    await settle()
    assert timer.ring() == ANSWER_PATIENCE_S
    with pytest.raises(StartFailed, match="does not answer"):
        await start
    assert list(agent.parked) == []
    assert agent.replicas == {}


async def test_a_dead_workers_stub_is_parked():
    agent, pool = node()
    worker = await started(agent, pool)
    await attached(agent)
    worker.ended.set_result(None)
    await settle()
    assert [one.replica for one in agent.parked] == ["r1"]


async def test_a_worker_that_dies_while_a_parked_stub_waits_for_it_leaves_the_stub_parked():
    agent, pool = node()
    await parked(agent, pool)
    start = await waking(agent)
    pool.workers[-1].ended.set_result(None)
    with pytest.raises(StartFailed, match="the engine worker of 'm' died"):
        await start
    assert [one.replica for one in agent.parked] == ["r2"]


async def test_a_stub_that_dies_parked_is_parked_no_more():
    agent, pool = node()
    stub, task = await parked(agent, pool)
    version = agent.version
    stub.close()
    await task
    assert list(agent.parked) == []
    assert agent.version > version
    with pytest.raises(StartFailed, match="parked stub r1 of 'm' is gone") as caught:
        await agent.start("r2", "m", PARAMETERS, "r1")
    assert caught.value.code == "UNAVAILABLE"
    assert agent.devices.granted_bytes == 0


async def test_a_stub_that_dies_while_its_engine_loads_fails_the_start():
    agent, pool = node()
    stub, task = await parked(agent, pool)
    start = await waking(agent)
    stub.close()
    await task
    with pytest.raises(StartFailed, match="the stub of 'm' ended"):
        await start
    assert pool.workers[-1].ended.done()


async def test_a_stub_that_was_started_with_another_configuration_is_not_used():
    agent, pool = node()
    await parked(agent, pool)
    with pytest.raises(StartFailed, match="another configuration"):
        await agent.start("r2", "m", PARAMETERS | {"max_streams": "2"}, "r1")
    assert [one.replica for one in agent.parked] == ["r1"]


async def test_a_released_replicas_stub_is_not_parked():
    """Triton is about to unload it."""
    agent, pool = node()
    await started(agent, pool)
    await attached(agent)
    await agent.release("r1")
    assert list(agent.parked) == []


async def test_a_new_agent_learns_of_a_parked_stub_from_the_stub():
    agent, pool = node()
    stub = HandChannel()
    request = Acquire(model="m", parameters=PARAMETERS, replica="r1", parked=True)
    task = asyncio.ensure_future(agent.welcome_stub(stub, request))  # type: ignore[arg-type]
    await settle()
    start = await waking(agent)
    pool.workers[-1].load("r2")
    stub.inbox.put_nowait(Attached(replica="r2"))
    await start
    assert not task.done()
