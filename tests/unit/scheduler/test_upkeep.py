"""Replicas that come and go without a request, over recorded effects and a clock that tests move."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from serverless_triton.scheduler.admission import ServerName, StreamId
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.effects import EffectFailed
from serverless_triton.scheduler.view import Phase
from tests.unit.scheduler.worlds import GB, World, asked, model, settle, world

A, B, C = model("a"), model("b"), model("c")
S0, S1 = ServerName("s0"), ServerName("s1")


def calls(w: World, effect: str) -> list[tuple[str, str]]:
    return [(server, subject) for name, server, subject in w.effects.calls if name == effect]


async def use(w: World, name: str, stream: str = "x") -> None:
    w.loop.finish(await w.loop.admit(StreamId(stream), name, timeout_s=1.0))


def wanted(w: World, *names: str) -> None:
    w.loop.lasting = lambda: names
    w.loop.upkeep.look_at_repository()


async def test_a_model_that_must_run_is_started_though_nobody_asks() -> None:
    w = world("s0", models=(replace(A, min_replicas=1),))
    wanted(w, "a")
    w.loop.upkeep.look()
    await settle()
    assert [replica.phase for replica in w.loop.cluster.replicas.values()] == [Phase.READY]


async def test_one_of_its_least_replicas_makes_room_for_nobody() -> None:
    w = world("s0", models=(replace(A, min_replicas=1), B, C))
    await use(w, "a")
    w.clock.now_s = 1.0
    await use(w, "b")
    await use(w, "c")
    assert sorted(r.model.name for r in w.loop.cluster.replicas.values()) == ["a", "c"]


async def test_a_start_that_nobody_waits_for_and_that_fails_is_tried_again_later_and_later() -> None:
    w = world("s0", models=(replace(A, min_replicas=1),), automatic=False)
    wanted(w, "a")
    tried_s = []
    for tenth in range(100):
        w.clock.now_s = tenth / 10
        before = len(calls(w, "start_engine"))
        w.loop.upkeep.look()
        await settle()
        for effect in ("start_engine", "load_model"):
            if (effect, "s0", "a") in w.effects.pending:
                w.effects.resolve(effect, S0, "a", EffectFailed("UNAVAILABLE", "no worker"))
        await settle()
        for key in [key for key in w.effects.pending if key[0] in ("release_engine", "unload_model")]:
            w.effects.resolve(*key)
            await settle()
        if len(calls(w, "start_engine")) > before:
            tried_s.append(w.clock.now_s)
    assert tried_s == [0.0, 1.0, 3.0, 7.0]


async def test_idle_replicas_of_the_least_priority_make_room_first() -> None:
    w = world("s0", models=(replace(A, priority=1), B, C))
    await use(w, "a")
    w.clock.now_s = 1.0
    await use(w, "b")
    await use(w, "c")
    assert sorted(r.model.name for r in w.loop.cluster.replicas.values()) == ["a", "c"]


async def test_a_pinned_model_is_not_evicted_and_kept_in_dram() -> None:
    w = world("s0", models=(replace(A, pinned=True), B, C))
    wanted(w, "a")
    w.loop.upkeep.look()
    await use(w, "a")
    w.clock.now_s = 1.0
    await use(w, "b")
    await use(w, "c")
    assert sorted(r.model.name for r in w.loop.cluster.replicas.values()) == ["a", "c"]
    assert calls(w, "pin") == [("s0", "/models/a")]


async def test_an_unpinned_model_may_go_from_dram_again() -> None:
    w = world("s0", models=(replace(A, pinned=True),))
    wanted(w, "a")
    w.loop.upkeep.look()
    await settle()
    w.define(A)
    w.loop.upkeep.look_at_repository()
    w.loop.upkeep.look()
    await settle()
    assert calls(w, "unpin") == [("s0", "/models/a")]


async def test_a_regular_model_is_parked_and_back_before_it_is_asked_for_again() -> None:
    w = world("s0", models=(A,))
    for turn in range(12):
        w.clock.now_s = turn * 100.0
        await use(w, "a")
    w.clock.now_s = 1102.0
    w.loop.upkeep.look()
    await settle()
    assert len(calls(w, "park_engine")) == 1
    w.clock.now_s = 1195.0
    w.loop.upkeep.look()
    await settle()
    place = await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    assert place.start is None


async def test_a_model_that_is_expected_back_evicts_nobody() -> None:
    w = world("s0", models=(A, B, C))
    for turn in range(12):
        w.clock.now_s = turn * 100.0
        await use(w, "a")
    w.clock.now_s = 1102.0
    w.loop.upkeep.look()
    await settle()
    await use(w, "b")
    await use(w, "c")
    w.clock.now_s = 1195.0
    w.loop.upkeep.look()
    await settle()
    assert sorted(r.model.name for r in w.loop.cluster.replicas.values()) == ["b", "c"]


async def test_a_fixed_keep_alive_counts_before_what_could_be_learned() -> None:
    w = world("s0", models=(A,), limits=ControlLimits(keep_alive_s=30.0))
    for turn in range(12):
        w.clock.now_s = turn * 100.0
        await use(w, "a")
    w.clock.now_s = 1110.0
    w.loop.upkeep.look()
    assert calls(w, "park_engine") == []
    w.clock.now_s = 1130.0
    w.loop.upkeep.look()
    await settle()
    assert len(calls(w, "park_engine")) == 1


async def test_an_event_has_it_look_and_the_next_deadline_is_a_timer_of_its_own() -> None:
    w = world("s0", models=(A,), limits=ControlLimits(keep_alive_s=0.0))
    await use(w, "a")
    for _ in range(100):
        if calls(w, "park_engine"):
            break
        await asyncio.sleep(0.01)
    assert len(calls(w, "park_engine")) == 1


async def test_what_will_be_asked_for_soon_is_read_into_dram_ahead() -> None:
    limits = ControlLimits(prefetch_bytes_per_server=2 * GB, prefetch_horizon_s=30.0)
    w = world("s0", models=(A,), limits=limits)
    for turn in range(12):
        w.clock.now_s = turn * 100.0
        await use(w, "a")
    w.clock.now_s = 1102.0
    w.loop.upkeep.look()
    await settle()
    assert calls(w, "prefetch") == []
    w.clock.now_s = 1175.0
    w.loop.upkeep.look()
    await settle()
    assert calls(w, "prefetch") == [("s0", "/models/a")]


async def test_a_prefetch_that_failed_is_not_tried_at_once_again() -> None:
    limits = ControlLimits(prefetch_bytes_per_server=2 * GB)
    w = world("s0", models=(A,), automatic=False, limits=limits)
    w.loop.demand.came("a", 0.0)
    w.loop.upkeep.look()
    await settle()
    w.effects.resolve("prefetch", S0, "/models/a", EffectFailed("UNAVAILABLE", "no store"))
    await settle()
    w.loop.upkeep.look()
    await settle()
    assert len(calls(w, "prefetch")) == 1
    w.clock.now_s = 31.0
    w.loop.upkeep.look()
    await settle()
    assert len(calls(w, "prefetch")) == 2


async def places(w: World, hold_s: float) -> None:
    """Both places of `a`, after it is known how long they are held."""
    first = await w.loop.admit(StreamId("first"), "a", timeout_s=1.0)
    w.clock.now_s += hold_s
    w.loop.finish(first)
    for name in ("p", "q"):
        await w.loop.admit(StreamId(name), "a", timeout_s=1.0)


async def test_who_gets_a_place_sooner_than_a_start_would_take_waits_for_it() -> None:
    w = world("s0", "s1", models=(A,))
    await places(w, 0.1)
    waiting = asked(w, "y", "a")
    await settle()
    assert not waiting.done()
    assert len(calls(w, "start_engine")) == 1
    waiting.cancel()
    await w.loop.close()


async def test_a_model_has_no_more_replicas_than_it_may() -> None:
    w = world("s0", "s1", models=(replace(A, max_replicas=1),))
    await places(w, 100.0)
    waiting = asked(w, "y", "a")
    await settle()
    assert not waiting.done()
    assert len(w.loop.cluster.replicas) == 1
    waiting.cancel()
