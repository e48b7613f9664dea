"""The agent's gRPC: what a scheduler is told of an engine."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from serverless_triton.backend import agent_pb2
from serverless_triton.backend.agent_service import AgentService
from serverless_triton.backend.messages import Loaded
from tests.unit.backend.test_agent import PARAMETERS, node, settle

PROMISE = agent_pb2.Exactness(kind="best_effort", reason="mode is fast", contract="0" * 64)


async def test_what_an_engine_promises_is_told_by_its_start_and_shown_from_then_on():
    agent, pool = node()
    agent.pool.has_forked = True
    tiers: Any = SimpleNamespace(status=None, dram_bytes=1)
    service = AgentService("n", agent, tiers)
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
