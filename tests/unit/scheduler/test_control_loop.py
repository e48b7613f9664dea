"""The control loop over recorded effects: events by hand, no sleep, no network."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from serverless_triton.scheduler.admission import Assignment, Exactness, ReplicaId, ServerName, StreamId
from serverless_triton.scheduler.cluster import ReplicaState
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.effects import EffectFailed
from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed, ModelTooLarge, NoCapacity, UnknownModel
from serverless_triton.scheduler.identity import ALL, Caller
from serverless_triton.scheduler.policy import Decision, StartRequest, choose
from serverless_triton.scheduler.rivals import POLICIES
from serverless_triton.scheduler.status import cluster_status
from serverless_triton.scheduler.view import ClusterView, Phase
from tests.unit.scheduler.worlds import GB, World, asked, model, settle, world

A, B, C = model("a"), model("b"), model("c")
S0, S1 = ServerName("s0"), ServerName("s1")


def calls(w: World, effect: str) -> list[tuple[str, str]]:
    return [(server, subject) for name, server, subject in w.effects.calls if name == effect]


async def test_a_cold_model_is_started_and_the_stream_gets_its_place() -> None:
    w = world("s0", models=(A,))
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    assert (place.server, place.grpc_address, place.stream) == ("s0", "s0:8001", "x")
    assert place.start is not None
    assert calls(w, "start_engine") == calls(w, "load_model") == [("s0", "a")]


async def test_a_warm_model_is_not_started_again() -> None:
    w = world("s0", models=(A,))
    w.loop.finish(await w.loop.admit(StreamId("x"), "a", timeout_s=1.0))
    place = await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    assert place.start is None
    assert len(calls(w, "start_engine")) == 1


async def test_every_place_says_what_its_engine_promises() -> None:
    w = world("s0", models=(A,))
    w.effects.exactness = Exactness(kind="exact", reason="proven", contract="0")
    cold = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    warm = await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    assert cold.exactness == warm.exactness == w.effects.exactness
    (shown,) = cluster_status(w.loop)["servers"][0]["replicas"]
    assert shown["exactness"] == {"kind": "exact", "reason": "proven", "contract": "0"}


async def test_two_streams_for_one_cold_model_make_one_load() -> None:
    w = world("s0", "s1", models=(A,), automatic=False)
    first, second = asked(w, "x", "a"), asked(w, "y", "a")
    await settle()
    w.effects.resolve("start_engine", S0, "a")
    w.effects.resolve("load_model", S0, "a")
    places = await asyncio.gather(first, second)
    assert places[0].replica == places[1].replica
    assert calls(w, "start_engine") == [("s0", "a")]


async def test_engine_and_stub_start_at_the_same_time() -> None:
    w = world("s0", models=(A,), automatic=False)
    waiting = asked(w, "x", "a")
    await settle()
    assert set(w.effects.pending) == {("start_engine", "s0", "a"), ("load_model", "s0", "a")}
    waiting.cancel()


async def test_the_least_recently_used_idle_replica_is_evicted_before_the_start() -> None:
    w = world("s0", models=(A, B, C))
    for at_s, name in enumerate("ab"):
        w.clock.now_s = float(at_s)
        w.loop.finish(await w.loop.admit(StreamId(name), name, timeout_s=1.0))
    w.effects.automatic = False
    waiting = asked(w, "x", "c")
    await settle()
    (parked,) = calls(w, "park_engine")
    assert parked[1].startswith("a-")
    assert ("s0", "c") not in calls(w, "start_engine")
    w.effects.resolve("park_engine", S0, parked[1])
    await settle()
    w.effects.resolve("start_engine", S0, "c")
    w.effects.resolve("load_model", S0, "c")
    assert (await waiting).model == "c"


async def test_who_is_preempted_loses_its_replica_and_the_start_waits_until_that_has_gone() -> None:
    large = tuple(model(name, device_bytes=2 * GB) for name in "ab")
    w = world("s0", models=large, policy=POLICIES["shepherd"])
    running = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    w.effects.automatic = False
    waiting = asked(w, "y", "b")
    await settle()
    assert await running.lost == "preempted"
    assert set(w.effects.pending) == {("park_engine", "s0", running.replica)}
    w.effects.resolve("park_engine", S0, running.replica)
    await settle()
    w.effects.resolve("start_engine", S0, "b")
    w.effects.resolve("load_model", S0, "b")
    assert (await waiting).model == "b"


async def test_a_busy_server_is_waited_for_until_a_stream_ends() -> None:
    large = tuple(model(name, device_bytes=2 * GB) for name in "ab")
    w = world("s0", models=large)
    holding = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    waiting = asked(w, "y", "b")
    await settle()
    assert not waiting.done()
    w.loop.finish(holding)
    assert (await waiting).model == "b"


async def test_a_wait_that_is_too_long_ends_in_a_typed_error_and_leaves_nothing() -> None:
    w = world("s0", models=(A,), automatic=False)
    with pytest.raises(AdmissionTimeout, match="'a' did not start"):
        await w.loop.admit(StreamId("x"), "a", timeout_s=0.0)
    assert w.loop.waiting_by_model() == {}
    assert all(not replica.streams for replica in w.loop.cluster.replicas.values())


async def test_a_cancelled_admission_gives_its_reference_back() -> None:
    w = world("s0", models=(A,), automatic=False)
    waiting = asked(w, "x", "a")
    await settle()
    waiting.cancel()
    await settle()
    w.effects.resolve("start_engine", S0, "a")
    w.effects.resolve("load_model", S0, "a")
    await settle()
    (replica,) = w.loop.cluster.replicas.values()
    assert replica.phase is Phase.READY
    assert replica.streams == set()


async def test_a_checkpoint_that_cannot_be_loaded_is_the_clients_error_at_once() -> None:
    w = world("s0", "s1", models=(A,), automatic=False)
    waiting = asked(w, "x", "a")
    await settle()
    w.effects.resolve("start_engine", S0, "a", EffectFailed("INVALID_ARGUMENT", "model.safetensors: is truncated"))
    w.effects.resolve("load_model", S0, "a", EffectFailed("INTERNAL", "load failed"))
    with pytest.raises(LoadFailed, match="truncated") as caught:
        await waiting
    assert caught.value.code == "INVALID_ARGUMENT"
    assert len(calls(w, "start_engine")) == 1


async def test_a_start_that_fails_on_one_server_is_tried_on_another() -> None:
    w = world("s0", "s1", models=(A,), automatic=False)
    waiting = asked(w, "x", "a")
    await settle()
    w.effects.resolve("start_engine", S0, "a", EffectFailed("UNAVAILABLE", "the worker died"))
    w.effects.resolve("load_model", S0, "a", EffectFailed("INTERNAL", "load failed"))
    await settle()
    w.effects.resolve("start_engine", S1, "a")
    w.effects.resolve("load_model", S1, "a")
    assert (await waiting).server == "s1"


async def test_failing_starts_are_bounded() -> None:
    w = world("s0", models=(A,), automatic=False, limits=ControlLimits(max_failed_starts=2))
    waiting = asked(w, "x", "a")
    for _ in range(2):
        await settle()
        for key in [k for k in w.effects.pending if k[0] in ("release_engine", "unload_model")]:
            w.effects.resolve(*key)
            await settle()
        for key in [k for k in w.effects.pending if k[0] == "unload_model"]:
            w.effects.resolve(*key)
            await settle()
        w.effects.resolve("start_engine", S0, "a", EffectFailed("UNAVAILABLE", "the worker died"))
        w.effects.resolve("load_model", S0, "a", EffectFailed("INTERNAL", "load failed"))
    with pytest.raises(LoadFailed, match="the worker died"):
        await waiting


async def test_a_lost_replica_tells_its_streams_and_is_not_used_again() -> None:
    w = world("s0", "s1", models=(A,))
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    w.loop.news.lose(w.loop.cluster.replicas[place.replica], "its worker died")
    assert place.lost.result() == "its worker died"
    again = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0, avoid=frozenset({place.replica}))
    assert again.replica != place.replica


async def test_a_replica_that_a_stream_broke_on_takes_no_more_and_goes_when_it_is_empty() -> None:
    w = world("s0", "s1", models=(A,))
    broken = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    other = await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    w.loop.finish(broken)
    again = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0, avoid=frozenset({broken.replica}))
    assert again.server == "s1"
    assert broken.replica in w.loop.cluster.replicas
    w.loop.finish(other)
    await settle()
    assert broken.replica not in w.loop.cluster.replicas
    assert ("s0", broken.replica) in calls(w, "release_engine")


async def test_streams_that_waited_for_a_lost_start_are_sent_elsewhere() -> None:
    w = world("s0", "s1", models=(A,), automatic=False)
    waiting = asked(w, "x", "a")
    await settle()
    (replica,) = w.loop.cluster.replicas.values()
    w.loop.cluster.servers[S0].triton_up = False
    w.loop.news.lose(replica, "server s0 went down")
    w.loop.dispatch()
    await settle()
    w.effects.resolve("start_engine", S1, "a")
    w.effects.resolve("load_model", S1, "a")
    assert (await waiting).server == "s1"


async def test_an_engine_that_comes_up_after_its_replica_was_lost_is_released() -> None:
    w = world("s0", models=(A,), automatic=False)
    waiting = asked(w, "x", "a")
    await settle()
    (replica,) = w.loop.cluster.replicas.values()
    waiting.cancel()
    await settle()
    w.loop.cluster.servers[S0].triton_up = False
    w.loop.news.lose(replica, "server s0 went down")
    w.effects.resolve("start_engine", S0, "a")
    w.effects.resolve("load_model", S0, "a")
    await settle()
    assert calls(w, "release_engine") == [("s0", replica.id)]


async def test_a_start_teaches_about_the_tier_that_its_bytes_came_from_whatever_was_expected() -> None:
    w = world("s0", models=(A,))
    before = w.loop.cluster.calibration.server(S0).fixed_start_s["cold"]
    w.loop.cluster.servers[S0].in_dram = frozenset({A.checkpoint})
    await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)  # the fake's bytes come from SSD
    after = w.loop.cluster.calibration.server(S0).fixed_start_s["cold"]
    assert after["dram"] == before["dram"]
    assert after["ssd"] < before["ssd"]


async def test_a_model_that_fits_nowhere_is_refused_with_what_would_help() -> None:
    w = world("s0", models=(model("huge", device_bytes=9 * GB),))
    with pytest.raises(ModelTooLarge, match="lower its max_streams"):
        await w.loop.admit(StreamId("x"), "huge", timeout_s=1.0)


async def test_finish_twice_is_finish_once() -> None:
    w = world("s0", models=(A,))
    first = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    second = await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    w.loop.finish(first)
    w.loop.finish(first)
    assert w.loop.cluster.replicas[second.replica].streams == {"y"}


async def test_unknown_models_are_refused_before_anything_waits() -> None:
    w = world("s0")
    with pytest.raises(UnknownModel):
        await w.loop.admit(StreamId("x"), "nope", timeout_s=1.0)
    assert w.loop.waiting_by_model() == {}


async def test_too_many_waiting_are_refused() -> None:
    w = world("s0", models=(A,), automatic=False, limits=ControlLimits(max_waiting_per_model=1))
    waiting = asked(w, "x", "a")
    await settle()
    with pytest.raises(NoCapacity, match="wait already"):
        await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    waiting.cancel()


def of(tenant: str, weight: int = 1) -> Caller:
    return Caller(tenant=tenant, models=ALL, weight=weight)


async def test_places_that_become_free_go_round_among_tenants() -> None:
    w = world("s0", models=(A,))
    held = [await w.loop.admit(StreamId(f"h{n}"), "a", timeout_s=1.0) for n in range(A.max_streams)]
    much = [asked(w, f"m{n}", "a", caller=of("much")) for n in range(4)]
    await settle()
    w.clock.now_s = 1.0
    little = asked(w, "l", "a", caller=of("little"))
    await settle()
    for place in held:
        w.loop.finish(place)
    await settle()
    assert [task.done() for task in (*much, little)] == [True, False, False, False, True]
    for task in much:
        task.cancel()


async def test_an_urgent_request_overtakes_its_tenants_others() -> None:
    w = world("s0", models=(A,))
    held = [await w.loop.admit(StreamId(f"h{n}"), "a", timeout_s=1.0) for n in range(A.max_streams)]
    plain, urgent = asked(w, "p", "a"), asked(w, "u", "a", priority=1)
    await settle()
    w.loop.finish(held[0])
    await settle()
    assert (plain.done(), urgent.done()) == (False, True)
    plain.cancel()


async def test_a_model_that_finds_no_room_holds_up_nobody_elses() -> None:
    w = world("s0", models=(A, model("large", device_bytes=2 * GB)))
    held = await w.loop.admit(StreamId("h"), "a", timeout_s=1.0)
    blocked = asked(w, "b", "large", caller=of("x"))
    await settle()
    place = await w.loop.admit(StreamId("y"), "a", timeout_s=1.0, caller=of("x"))
    assert place.model == "a"
    assert not blocked.done()
    for one in (held, place):
        w.loop.finish(one)
    assert (await blocked).model == "large"


async def test_a_full_queue_makes_space_for_a_tenant_that_has_none_of_it() -> None:
    w = world("s0", models=(A,), limits=ControlLimits(max_waiting_per_model=2))
    for n in range(A.max_streams):
        await w.loop.admit(StreamId(f"h{n}"), "a", timeout_s=1.0)
    much = [asked(w, f"m{n}", "a", caller=of("much")) for n in range(2)]
    await settle()
    little = asked(w, "l", "a", caller=of("little"))
    await settle()
    assert (much[0].done(), little.done()) == (False, False)
    with pytest.raises(NoCapacity, match="wait already"):
        await much[1]
    for task in (much[0], little):
        task.cancel()


class CountingPolicy(Counter[str]):
    """Ours; how often the control loop has asked it, by model."""

    def __call__(self, view: ClusterView, request: StartRequest) -> Decision:
        self[request.model.name] += 1
        return choose(view, request)


@pytest.fixture
def asked_of_policy() -> CountingPolicy:
    return CountingPolicy()


async def crowded(policy: CountingPolicy) -> tuple[World, list[Assignment], list[asyncio.Task[Assignment]]]:
    """A server without room: every place of a and b is held, and 333 streams wait for each of a, b and c."""
    w = world("s0", models=(A, B, C), policy=policy)
    held = [await w.loop.admit(StreamId(f"h-{name}{n}"), name, timeout_s=1.0) for name in "ab" for n in range(2)]
    waiting = [asked(w, f"{name}{n}", name) for n in range(333) for name in "abc"]
    await settle()
    assert w.loop.waiting_by_model() == {"a": 333, "b": 333, "c": 333}
    return w, held, waiting


async def test_however_many_come_for_a_full_cluster_the_policy_is_asked_once_a_model(
    asked_of_policy: CountingPolicy,
) -> None:
    _, held, waiting = await crowded(asked_of_policy)
    asked_while_places_were_free = Counter(place.model for place in held)
    assert asked_of_policy - asked_while_places_were_free == {"a": 1, "b": 1, "c": 1}
    for one in waiting:
        one.cancel()


async def test_a_place_that_becomes_free_makes_the_policy_be_asked_again_once_a_model_and_place(
    asked_of_policy: CountingPolicy,
) -> None:
    w, held, waiting = await crowded(asked_of_policy)
    asked_of_policy.clear()
    w.loop.finish(held[0])
    await settle()
    assert [one.result().stream for one in waiting if one.done()] == ["a0"]
    assert asked_of_policy == {"a": 2, "b": 1, "c": 1}
    for one in waiting:
        one.cancel()


async def test_a_crowd_that_hangs_up_gives_every_place_back(asked_of_policy: CountingPolicy) -> None:
    w, held, waiting = await crowded(asked_of_policy)
    asked_of_policy.clear()
    w.loop.finish(held[0])
    for one in waiting:
        one.cancel()
    await settle()
    assert w.loop.waiting_by_model() == {}
    assert sorted(len(replica.streams) for replica in w.loop.cluster.replicas.values()) == [1, 2]
    assert asked_of_policy.total() <= 4 * len(waiting)


async def test_warm_starts_and_release_stops_once_streams_have_ended() -> None:
    w = world("s0", models=(A,))
    await w.loop.warm("a", timeout_s=1.0)
    assert w.loop.ready_models() == {"a"}
    held = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    releasing = asyncio.ensure_future(w.loop.release("a", timeout_s=60.0))
    await settle()
    assert not releasing.done()
    w.loop.finish(held)
    await releasing
    assert w.loop.ready_models() == frozenset()


async def test_a_replica_that_is_released_takes_no_more_streams_and_another_one_starts_for_them() -> None:
    w = world("s0", "s1", models=(A,))
    held = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    releasing = asyncio.ensure_future(w.loop.release("a", timeout_s=60.0))
    await settle()
    later = await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    assert later.replica != held.replica
    w.loop.finish(held)
    await releasing
    assert ("s0", held.replica) in calls(w, "release_engine")
    assert list(w.loop.cluster.replicas) == [later.replica]


async def test_a_release_ends_under_constant_traffic_where_there_is_room_for_one_replica() -> None:
    w = world("s0", models=(A,))
    held = [await w.loop.admit(StreamId("0"), "a", timeout_s=1.0)]
    releasing = asyncio.ensure_future(w.loop.release("a", timeout_s=60.0))
    await settle()
    waiting = asyncio.ensure_future(w.loop.admit(StreamId("1"), "a", timeout_s=1.0))
    await settle()
    assert not waiting.done()
    w.loop.finish(held[0])
    await releasing
    assert (await waiting).replica != held[0].replica


async def test_a_release_waits_until_what_it_stops_is_gone() -> None:
    w = world("s0", models=(A,), automatic=True)
    held = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    w.effects.automatic = False
    releasing = asyncio.ensure_future(w.loop.release("a", timeout_s=60.0))
    await settle()
    w.loop.finish(held)
    await settle()
    assert not releasing.done()
    w.effects.resolve("release_engine", S0, held.replica)
    await settle()
    w.effects.resolve("unload_model", S0, "a")
    await releasing


async def test_a_release_that_is_too_late_leaves_its_replicas_to_their_last_streams() -> None:
    w = world("s0", models=(A,))
    held = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    with pytest.raises(AdmissionTimeout, match="goes when they have ended"):
        await w.loop.release("a", timeout_s=0.01)
    w.loop.finish(held)
    await settle()
    assert w.loop.cluster.replicas == {}


async def test_a_start_that_is_released_serves_those_who_wait_for_it_and_goes() -> None:
    w = world("s0", models=(A,), automatic=False)
    waiting = asyncio.ensure_future(w.loop.admit(StreamId("x"), "a", timeout_s=60.0))
    await settle()
    releasing = asyncio.ensure_future(w.loop.release("a", timeout_s=60.0))
    w.effects.automatic = True
    for key in list(w.effects.pending):
        w.effects.resolve(*key)
    place = await waiting
    await settle()
    assert not releasing.done()
    w.loop.finish(place)
    await releasing
    assert w.loop.cluster.replicas == {}


async def test_a_replica_that_somebody_else_started_is_adopted_and_used() -> None:
    w = world("s0", models=(A,))
    lost = asyncio.get_running_loop().create_future()
    w.loop.news.adopt(ReplicaState(id=ReplicaId("a-old"), model=A, server=S0, phase=Phase.READY, lost=lost))
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    assert place.replica == "a-old"
    assert calls(w, "start_engine") == []


async def parked_on_s0(*servers: str) -> tuple[World, ReplicaId]:
    """A world in which model a's stub waits on s0 for an engine."""
    w = world(*servers, models=(A, B, C), limits=ControlLimits(keep_alive_s=10.0))
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    w.loop.finish(place)
    w.clock.now_s = 10.0
    w.loop.upkeep.look()
    await settle()
    assert calls(w, "park_engine") == [("s0", place.replica)]
    w.loop.news.parked(w.loop.cluster.servers[S0], {place.replica: "a"})
    return w, place.replica


async def test_a_replica_that_nobody_uses_for_a_while_is_parked() -> None:
    w = world("s0", models=(A,), limits=ControlLimits(keep_alive_s=10.0))
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    w.clock.now_s = 100.0
    w.loop.upkeep.look()
    assert w.loop.ready_models() == {"a"}
    w.loop.finish(place)
    w.clock.now_s = 109.9
    w.loop.upkeep.look()
    assert w.loop.ready_models() == {"a"}
    w.clock.now_s = 110.0
    w.loop.upkeep.look()
    await settle()
    assert calls(w, "park_engine") == [("s0", place.replica)]
    assert calls(w, "unload_model") == []
    assert w.loop.ready_models() == frozenset()


async def test_a_parked_model_starts_without_triton_and_its_receipt_says_so() -> None:
    w, stub = await parked_on_s0("s0", "s1")
    place = await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    assert (place.server, w.effects.orders[-1].parked) == ("s0", stub)
    assert place.replica != stub
    assert place.start is not None
    assert place.start.state == "parked"
    assert len(calls(w, "load_model")) == 1  # of the first start


async def test_a_parked_stub_serves_one_start_whatever_older_news_say() -> None:
    w, stub = await parked_on_s0("s0")
    place = await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    w.loop.news.parked(w.loop.cluster.servers[S0], {stub: "a"})
    assert w.loop.cluster.view().servers[0].parked == {}
    assert place.replica in w.loop.cluster.replicas


async def test_cold_and_parked_starts_are_learned_apart() -> None:
    w, _ = await parked_on_s0("s0")
    before = w.loop.cluster.calibration.server(S0).fixed_start_s
    await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    after = w.loop.cluster.calibration.server(S0).fixed_start_s
    assert after["parked"]["ssd"] != before["parked"]["ssd"]
    assert after["cold"] == before["cold"]


async def test_a_start_on_a_stub_that_is_gone_is_tried_again_without_it() -> None:
    w, stub = await parked_on_s0("s0")
    w.effects.automatic = False
    waiting = asked(w, "y", "a")
    await settle()
    w.effects.resolve("start_engine", S0, "a", EffectFailed("UNAVAILABLE", f"the parked stub {stub} of 'a' is gone"))
    await settle()
    w.effects.automatic = True
    for key in list(w.effects.pending):
        w.effects.resolve(*key)
    place = await waiting
    assert w.effects.orders[-1].parked is None
    assert place.start is not None
    assert place.start.state == "cold"


async def test_an_unload_takes_parked_stubs_too() -> None:
    w, stub = await parked_on_s0("s0")
    await w.loop.release("a", timeout_s=1.0)
    await settle()
    assert calls(w, "unload_model") == [("s0", "a")]
    assert stub not in w.loop.cluster.servers[S0].parked


async def test_of_too_many_parked_stubs_the_oldest_is_unloaded() -> None:
    w = world("s0", models=(A, B, C), limits=ControlLimits(max_parked_per_server=2))
    server = w.loop.cluster.servers[S0]
    w.loop.news.parked(server, {ReplicaId("a-1"): "a", ReplicaId("b-1"): "b"})
    w.loop.news.parked(server, {ReplicaId("c-1"): "c", ReplicaId("b-1"): "b", ReplicaId("a-1"): "a"})
    await settle()
    assert calls(w, "unload_model") == [("s0", "a")]
    assert set(server.parked.by_model()) == {"b", "c"}


async def test_of_parked_stubs_that_hold_too_much_memory_the_oldest_are_unloaded() -> None:
    w = world("s0", models=(A, B, C), limits=ControlLimits(max_parked_bytes_per_server=100))
    server = w.loop.cluster.servers[S0]
    sizes = {ReplicaId("a-1"): 30, ReplicaId("b-1"): 40, ReplicaId("c-1"): 61}
    w.loop.news.parked(server, {ReplicaId("a-1"): "a", ReplicaId("b-1"): "b"}, sizes)
    await settle()
    assert calls(w, "unload_model") == []
    w.loop.news.parked(server, {ReplicaId("a-1"): "a", ReplicaId("b-1"): "b", ReplicaId("c-1"): "c"}, sizes)
    await settle()
    assert calls(w, "unload_model") == [("s0", "a"), ("s0", "b")]
    assert set(server.parked.by_model()) == {"c"}


async def test_a_parked_stub_that_grows_beyond_the_memory_for_all_of_them_is_unloaded() -> None:
    w = world("s0", models=(A,), limits=ControlLimits(max_parked_bytes_per_server=100))
    server = w.loop.cluster.servers[S0]
    for size in (100, 101):
        w.loop.news.parked(server, {ReplicaId("a-1"): "a"}, {ReplicaId("a-1"): size})
    await settle()
    assert calls(w, "unload_model") == [("s0", "a")]


async def test_a_parked_stub_that_died_because_triton_does_not_notice() -> None:
    w, _ = await parked_on_s0("s0")
    w.loop.news.parked(w.loop.cluster.servers[S0], {})
    await settle()
    assert calls(w, "unload_model") == [("s0", "a")]


async def test_a_stub_that_a_new_agent_has_not_heard_of_yet_is_not_unloaded() -> None:
    w, _ = await parked_on_s0("s0")
    w.loop.news.parked(w.loop.cluster.servers[S0], {}, settled=False)
    await settle()
    assert calls(w, "unload_model") == []


async def test_a_replica_whose_worker_died_leaves_its_parked_stub_in_triton() -> None:
    w = world("s0", models=(A,))
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    w.loop.news.parked(w.loop.cluster.servers[S0], {place.replica: "a"})
    w.loop.news.lose(w.loop.cluster.replicas[place.replica], "its worker died")
    w.loop.finish(place)
    again = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0, avoid=frozenset({place.replica}))
    assert calls(w, "unload_model") == calls(w, "release_engine") == []
    assert w.effects.orders[-1].parked == place.replica
    assert again.replica != place.replica


async def test_while_a_scheduler_may_not_act_everybody_waits() -> None:
    w = world("s0", models=(A,))
    may_act = False
    w.loop.may_act = lambda: may_act
    waiting = asked(w, "x", "a")
    await settle()
    assert w.effects.calls == []
    may_act = True
    w.loop.dispatch()
    assert (await waiting).server == "s0"
