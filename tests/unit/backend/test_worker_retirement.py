"""A worker whose memory has gone to pieces asks its agent to end it, while nobody uses it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from serverless_triton.backend.messages import Failed, Message
from serverless_triton.backend.retirement import RetirementRule, WorkerMemory
from tests.unit.backend.test_worker import WAIT_S, Bench, bench, prompt

__all__ = ["bench"]

GROWN = 70 << 20


def waste(bench: Bench, grown: int) -> None:
    """The worker's memory has grown so much since the load."""
    sizes = iter([0, *[grown] * 100])
    bench.worker._memory = WorkerMemory(measure=lambda pid: next(sizes))
    bench.worker._retirement = RetirementRule(waste_bytes=64 << 20)


def consider(bench: Bench) -> None:
    """As every heartbeat does."""
    bench.worker._commands.put(bench.worker._retire_if_due)


def told_agent(bench: Bench) -> Message:
    return bench.agent.receive()[0]


def test_a_worker_that_wastes_too_much_tells_its_agent(bench: Bench) -> None:
    bench.serve()
    waste(bench, GROWN)
    consider(bench)
    assert told_agent(bench) == Failed(
        code="UNAVAILABLE",
        message=f"the engine worker of 'm' retired: it holds {GROWN} bytes beyond the 0 that it needs",
    )


def test_a_worker_that_wastes_little_stays(bench: Bench) -> None:
    bench.serve()
    waste(bench, 10)
    consider(bench)
    waste(bench, GROWN)
    consider(bench)
    assert isinstance(told_agent(bench), Failed)  # the first that it says


def test_a_worker_in_use_stays_until_its_stream_has_ended(bench: Bench) -> None:
    stub = bench.serve()
    waste(bench, GROWN)
    bench.ask(prompt(1, max_tokens=2))
    assert bench.engine.stepping.wait(WAIT_S)
    consider(bench)  # heard between the two steps
    for _ in range(2):
        bench.engine.steps.put(None)
    while getattr(stub.receive()[0], "finish_reason", None) is None:
        pass
    consider(bench)
    assert isinstance(told_agent(bench), Failed)
    bench.agent.set_timeout(0.2)
    with pytest.raises(TimeoutError):
        bench.agent.receive()


def test_gpu_memory_that_torch_has_reserved_and_not_allocated_is_wasted(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved, allocated = {"cuda:0": 70, "cuda:1": 50}, {"cuda:0": 40, "cuda:1": 45}
    cuda = SimpleNamespace(memory_reserved=reserved.__getitem__, memory_allocated=allocated.__getitem__)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    memory = WorkerMemory(("cuda:0", "cuda:1")).now()
    assert (memory.held_bytes, memory.needed_bytes, memory.wasted_bytes) == (120, 85, 35)
