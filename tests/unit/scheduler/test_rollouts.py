"""Models that change or go while they run, over recorded effects: events by hand, no sleep, no network."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from serverless_triton.scheduler.admission import ReplicaId, ServerName, StreamId
from serverless_triton.scheduler.cluster import ReplicaState
from serverless_triton.scheduler.definitions import definition_of, new_replica_id
from serverless_triton.scheduler.effects import EffectFailed
from serverless_triton.scheduler.errors import LoadFailed, UnknownModel
from serverless_triton.scheduler.policy import StartRequest, Use, Wait, choose
from serverless_triton.scheduler.rollouts import RolloutMetrics, Rollouts, in_the_way
from tests.unit.scheduler.worlds import GB, World, asked, model, replica, server, settle, view, world

OLD, NEW = "0" * 12, "1" * 12
A, CHANGED = model("a", definition=OLD), model("a", definition=NEW)
LARGE, LARGE_CHANGED = (model("a", device_bytes=2 * GB, definition=name) for name in (OLD, NEW))
S0, S1 = ServerName("s0"), ServerName("s1")


def rollouts_of(w: World) -> Rollouts:
    return Rollouts(loop=w.loop, metrics=RolloutMetrics(CollectorRegistry()), timeout_s=60.0, clock=w.clock)


def calls(w: World, effect: str) -> list[tuple[str, str]]:
    return [(server, subject) for name, server, subject in w.effects.calls if name == effect]


def running(w: World) -> dict[str, ReplicaState]:
    """By definition."""
    return {one.model.definition: one for one in w.loop.cluster.replicas.values()}


def let_it_start(w: World, on: ServerName, error: EffectFailed | None = None) -> None:
    w.effects.resolve("start_engine", on, "a", error)
    w.effects.resolve("load_model", on, "a", error)


async def test_a_changed_model_is_replaced_and_the_old_replica_goes() -> None:
    w = world("s0", models=(A,))
    rollouts = rollouts_of(w)
    await w.loop.warm("a", timeout_s=1.0)
    old = running(w)[OLD].id
    w.define(CHANGED)
    rollouts.check()
    await settle()
    assert set(running(w)) == {NEW}
    assert calls(w, "release_engine") == [("s0", old)]
    assert calls(w, "park_engine") == []


async def test_an_unchanged_model_is_left_alone() -> None:
    w = world("s0", models=(A,))
    await w.loop.warm("a", timeout_s=1.0)
    rollouts_of(w).check()
    await settle()
    assert len(calls(w, "start_engine")) == 1


async def test_a_model_that_does_not_run_is_not_started_by_a_change() -> None:
    w = world("s0", models=(A,))
    w.define(CHANGED)
    rollouts_of(w).check()
    await settle()
    assert w.effects.calls == []


async def test_the_old_replica_takes_new_streams_until_the_new_one_is_ready() -> None:
    w = world("s0", models=(A,))
    await w.loop.warm("a", timeout_s=1.0)
    w.effects.automatic = False
    w.define(CHANGED)
    rollouts_of(w).check()
    await settle()
    before = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    let_it_start(w, S0)
    await settle()
    after = await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    assert (before.definition, after.definition) == (OLD, NEW)


async def test_running_streams_end_on_the_old_replica_which_then_goes() -> None:
    w = world("s0", models=(A,))
    stream = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    w.define(CHANGED)
    rollouts_of(w).check()
    await settle()
    assert set(running(w)) == {OLD, NEW}
    assert not stream.lost.done()
    w.loop.finish(stream)
    await settle()
    assert set(running(w)) == {NEW}
    assert calls(w, "release_engine") == [("s0", stream.replica)]
    assert calls(w, "unload_model") == []  # the new one's stub has the name now


async def test_without_room_for_both_an_idle_old_replica_goes_first() -> None:
    w = world("s0", models=(LARGE,))
    await w.loop.warm("a", timeout_s=1.0)
    old = running(w)[OLD].id
    w.define(LARGE_CHANGED)
    rollouts_of(w).check()
    await settle()
    assert set(running(w)) == {NEW}
    assert calls(w, "release_engine") == [("s0", old)]


async def test_without_room_for_both_a_busy_old_replica_takes_no_more_and_goes_when_its_streams_end() -> None:
    w = world("s0", models=(LARGE,))
    rollouts = rollouts_of(w)
    stream = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    w.define(LARGE_CHANGED)
    rollouts.check()
    await settle()
    rollouts.check()
    newcomer = asked(w, "y", "a")
    await settle()
    assert not newcomer.done()
    w.loop.finish(stream)
    assert (await newcomer).definition == NEW


async def test_a_definition_that_does_not_start_leaves_the_old_one_serving_and_says_why() -> None:
    w = world("s0", models=(A,))
    rollouts = rollouts_of(w)
    await w.loop.warm("a", timeout_s=1.0)
    w.effects.automatic = False
    w.define(CHANGED)
    rollouts.check()
    await settle()
    let_it_start(w, S0, EffectFailed("INVALID_ARGUMENT", "model.safetensors: is truncated"))
    await settle()
    assert w.loop.failed_definitions() == {"a": "model.safetensors: is truncated"}
    assert (await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)).definition == OLD


async def test_a_definition_that_does_not_start_is_not_tried_again_by_itself() -> None:
    w = world("s0", "s1", models=(A,))
    rollouts = rollouts_of(w)
    await w.loop.warm("a", timeout_s=1.0)
    w.effects.automatic = False
    w.define(CHANGED)
    rollouts.check()
    await settle()
    (failing,) = {on for effect, on, _ in w.effects.pending if effect == "start_engine"}
    let_it_start(w, failing, EffectFailed("INVALID_ARGUMENT", "broken"))
    await settle()
    full = [await w.loop.admit(StreamId(name), "a", timeout_s=1.0) for name in "xy"]
    waiting = asked(w, "z", "a")  # for a place on the old one, though there is room for another
    w.clock.now_s = 1000.0
    rollouts.check()
    await settle()
    assert len(calls(w, "start_engine")) == 2
    w.loop.finish(full[0])
    assert (await waiting).definition == OLD


async def test_a_load_tries_a_failed_definition_again() -> None:
    w = world("s0", models=(A,))
    rollouts = rollouts_of(w)
    await w.loop.warm("a", timeout_s=1.0)
    w.effects.automatic = False
    w.define(CHANGED)
    rollouts.check()
    await settle()
    let_it_start(w, S0, EffectFailed("INVALID_ARGUMENT", "broken"))
    await settle()
    w.effects.automatic = True
    for pending in list(w.effects.pending):
        w.effects.resolve(*pending)
    await w.loop.warm("a", timeout_s=1.0)
    rollouts.check()
    await settle()
    assert set(running(w)) == {NEW}
    assert w.loop.failed_definitions() == {}


async def test_a_load_of_a_changed_model_hears_that_it_does_not_start() -> None:
    w = world("s0", models=(A,))
    await w.loop.warm("a", timeout_s=1.0)
    w.effects.automatic = False
    w.define(CHANGED)
    loading = asyncio.ensure_future(w.loop.warm("a", timeout_s=1.0))
    await settle()
    let_it_start(w, S0, EffectFailed("INVALID_ARGUMENT", "is truncated"))
    with pytest.raises(LoadFailed, match="is truncated"):
        await loading


async def test_a_start_that_failed_for_a_reason_that_passes_is_tried_again_later() -> None:
    w = world("s0", models=(A,))
    rollouts = rollouts_of(w)
    await w.loop.warm("a", timeout_s=1.0)
    w.effects.automatic = False
    w.define(CHANGED)
    rollouts.check()
    for _ in range(3):
        await settle()
        let_it_start(w, S0, EffectFailed("UNAVAILABLE", "the worker died"))
        await settle()
        for pending in [one for one in w.effects.pending if one[0] == "release_engine"]:
            w.effects.resolve(*pending)
    await settle()
    rollouts.check()
    await settle()
    assert len(calls(w, "start_engine")) == 4
    w.effects.automatic, w.clock.now_s = True, 1000.0
    rollouts.check()
    await settle()
    assert set(running(w)) == {NEW}


async def test_those_who_wait_for_a_model_that_goes_hear_it() -> None:
    w = world("s0", models=(A,), automatic=False)
    joined, beyond = asked(w, "x", "a"), asked(w, "y", "a")
    await settle()
    del w.orders["a"]
    rollouts_of(w).check()
    for waiting in (joined, beyond):
        with pytest.raises(UnknownModel, match=r"^Request for unknown model: 'a' is not found$"):
            await waiting


async def test_replicas_of_a_model_that_goes_end_with_their_streams() -> None:
    w = world("s0", models=(A,))
    rollouts = rollouts_of(w)
    stream = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    del w.orders["a"]
    rollouts.check()
    await settle()
    assert set(running(w)) == {OLD}
    assert not stream.lost.done()
    w.loop.finish(stream)
    await settle()
    assert running(w) == {}
    assert calls(w, "release_engine") == [("s0", stream.replica)]
    assert calls(w, "unload_model") == [("s0", "a")]


async def test_a_start_under_way_of_a_model_that_goes_is_ended_when_it_is_over() -> None:
    w = world("s0", models=(A,), automatic=False)
    waiting = asked(w, "x", "a")
    await settle()
    del w.orders["a"]
    rollouts_of(w).check()
    with pytest.raises(UnknownModel):
        await waiting
    w.effects.automatic = True
    let_it_start(w, S0)
    await settle()
    assert running(w) == {}


@pytest.mark.parametrize("is_gone", [True, False])
async def test_parked_stubs_of_a_model_that_changed_or_went_are_unloaded(is_gone: bool) -> None:
    w = world("s0", models=(A,))
    stub = new_replica_id("a", OLD)
    state = w.loop.cluster.servers[S0]
    w.loop.news.parked(state, {stub: "a"})
    if is_gone:
        del w.orders["a"]
    else:
        w.define(CHANGED)
    rollouts_of(w).check()
    await settle()
    assert calls(w, "unload_model") == [("s0", "a")]
    assert stub not in state.parked


async def test_a_parked_stub_of_the_same_definition_stays() -> None:
    w = world("s0", models=(A,))
    stub = new_replica_id("a", OLD)
    w.loop.news.parked(w.loop.cluster.servers[S0], {stub: "a"})
    rollouts_of(w).check()
    assert stub in w.loop.cluster.servers[S0].parked
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    assert w.effects.orders[0].parked == stub
    assert definition_of(place.replica) == OLD


async def test_a_stub_that_was_parked_with_another_configuration_gets_no_engine() -> None:
    w = world("s0", models=(CHANGED,))
    w.loop.news.parked(w.loop.cluster.servers[S0], {new_replica_id("a", OLD): "a"})
    await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    assert w.effects.orders[0].parked is None


def test_a_start_that_waits_for_others_names_nobody_in_its_way() -> None:
    busy = replica("b", "s0", model("b", device_bytes=2 * GB), streams=1)
    old = replica("a", "s1", A, streams=1)
    wanted = StartRequest(model=model("a", device_bytes=2 * GB, definition=NEW), avoid=frozenset({old.id}))
    small = server("s1", device_memory_bytes=GB)
    assert in_the_way(view([server("s0"), small], [busy, old]), wanted) is None


def test_the_old_replica_with_the_fewest_streams_is_in_the_way() -> None:
    olds = [replica("x", "s0", LARGE, streams=2), replica("y", "s1", LARGE, streams=1)]
    wanted = StartRequest(model=LARGE_CHANGED, avoid=frozenset(old.id for old in olds))
    assert in_the_way(view([server("s0"), server("s1")], olds), wanted) == ReplicaId("y")


def test_a_ready_replica_of_the_newest_definition_comes_before_an_emptier_old_one() -> None:
    world_now = view([server("s0")], [replica("old", "s0", A), replica("new", "s0", CHANGED, streams=1)])
    assert choose(world_now, StartRequest(model=CHANGED)).action == Use(replica=ReplicaId("new"))


def test_others_idle_replicas_make_room_before_the_models_own() -> None:
    idle = [replica("old", "s0", A, idle_since_s=1.0), replica("b", "s0", model("b"), idle_since_s=2.0)]
    request = StartRequest(model=CHANGED, avoid=frozenset({ReplicaId("old")}))
    action = choose(view([server("s0")], idle), request).action
    assert action.candidate.evict == ("b",)  # type: ignore[union-attr]


def test_a_failed_definition_is_waited_for_while_an_old_one_serves() -> None:
    full = [replica("old", "s0", A, streams=2)]
    decision = choose(view([server("s0"), server("s1")], full, frozenset({NEW})), StartRequest(model=CHANGED))
    assert isinstance(decision.action, Wait)


# Versions of one model: "a" alone is the latest


ONE = replace(A, version="1", others=frozenset({"2"}), by_name=True)
TWO = replace(CHANGED, version="2", others=frozenset({"1"}))


def two_versions(*servers: str) -> World:
    w = world(*servers, models=(TWO,))
    w.define(ONE)
    w.define(replace(TWO, by_name=True))
    return w


async def test_two_versions_are_served_at_once_by_two_servers() -> None:
    w = two_versions("s0", "s1")
    places = [await w.loop.admit(StreamId(f"x{version}"), "a", timeout_s=1.0, version=version) for version in "12"]
    assert [place.version for place in places] == ["1", "2"]
    assert places[0].server != places[1].server


async def test_only_the_version_that_runs_is_said_to_run() -> None:
    w = two_versions("s0", "s1")
    await w.loop.warm("a", timeout_s=1.0, version="1")
    assert [w.loop.runs("a", version) for version in "12"] == [True, False]


async def test_a_request_without_a_version_gets_the_latest() -> None:
    w = two_versions("s0", "s1")
    await w.loop.warm("a", timeout_s=1.0, version="1")
    assert (await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)).version == "2"


async def test_on_one_server_an_idle_version_makes_room_for_the_other_and_is_not_parked() -> None:
    w = two_versions("s0")
    await w.loop.warm("a", timeout_s=1.0, version="1")
    assert (await w.loop.admit(StreamId("x"), "a", timeout_s=1.0, version="2")).version == "2"
    assert set(running(w)) == {NEW}
    assert calls(w, "park_engine") == []


async def test_on_one_server_a_version_waits_for_the_streams_of_the_other() -> None:
    w = two_versions("s0")
    stream = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0, version="1")
    waiting = asked(w, "y", "a", version="2")
    await settle()
    assert not waiting.done()
    w.loop.finish(stream)
    assert (await waiting).version == "2"


async def test_a_version_that_comes_beside_another_replaces_nothing() -> None:
    w = two_versions("s0", "s1")
    await w.loop.warm("a", timeout_s=1.0, version="1")
    rollouts_of(w).check()
    await settle()
    assert set(running(w)) == {OLD}


async def test_a_version_that_is_no_longer_served_is_replaced_by_the_latest() -> None:
    w = world("s0", models=(replace(A, version="1"),))
    stream = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    w.effects.automatic = False
    w.define(replace(CHANGED, version="2"))
    rollouts_of(w).check()
    await settle()
    meanwhile = await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    let_it_start(w, S0)
    await settle()
    after = await w.loop.admit(StreamId("z"), "a", timeout_s=1.0)
    assert [place.version for place in (stream, meanwhile, after)] == ["1", "1", "2"]


async def test_a_request_that_names_the_latest_version_is_not_answered_by_the_one_before() -> None:
    w = world("s0", models=(replace(A, version="1"),))
    await w.loop.warm("a", timeout_s=1.0)
    w.define(replace(CHANGED, version="2"))
    w.define(replace(CHANGED, version="2", by_name=True))
    assert (await w.loop.admit(StreamId("x"), "a", timeout_s=1.0, version="2")).version == "2"


async def test_a_changed_version_is_replaced_by_itself() -> None:
    w = two_versions("s0", "s1")
    for version in "12":
        await w.loop.warm("a", timeout_s=1.0, version=version)
    newer = "2" * 12
    w.define(replace(ONE, definition=newer))
    rollouts_of(w).check()
    await settle()
    assert {one.model.version: name for name, one in running(w).items()} == {"1": newer, "2": NEW}


async def test_parked_stubs_of_every_served_version_stay() -> None:
    w = two_versions("s0", "s1")
    stubs = {S0: new_replica_id("a", OLD), S1: new_replica_id("a", NEW)}
    for server_name, stub in stubs.items():
        w.loop.news.parked(w.loop.cluster.servers[server_name], {stub: "a"})
    rollouts_of(w).check()
    await settle()
    assert calls(w, "unload_model") == []
