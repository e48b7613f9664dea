"""What the control loop makes of a server's news; states come by hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from serverless_triton.backend import agent_pb2
from serverless_triton.scheduler.admission import Exactness, ReplicaId, ServerName, StreamId
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.definitions import new_replica_id
from serverless_triton.scheduler.server_watch import ServerWatch
from serverless_triton.scheduler.state.protocol import FakeLeadership, NotLeading
from serverless_triton.scheduler.view import Phase
from tests.unit.scheduler.worlds import GB, World, asked, model, settle, world

A = model("a")
S0 = ServerName("s0")


def watch(w: World) -> ServerWatch:
    w.loop.cluster.servers[S0].agent_up = False
    return ServerWatch(w.loop, w.loop.cluster.servers[S0], "agent:1", FakeLeadership())


def state(
    version: int, *replicas: str, phase: agent_pb2.Phase = agent_pb2.READY, epoch: int = 0
) -> agent_pb2.NodeState:
    shown = [agent_pb2.Replica(id=name, model=name.partition("-")[0], phase=phase) for name in replicas]
    return agent_pb2.NodeState(
        node="s0",
        version=version,
        highest_epoch=epoch,
        device_memory_bytes=2 * GB,
        dram_bytes=4 * GB,
        workers_ready=True,
        ssd_bytes_per_second=5e8,
        replicas=shown,
        images=[agent_pb2.Image(checkpoint="/models/a", bytes=1)],
    )


def hear(news: ServerWatch, *states: agent_pb2.NodeState) -> None:
    for one in states:
        if not news.server.agent_up:
            news._greet(one)
        news._take_over(one)


async def test_budgets_tiers_and_bandwidth_are_taken_over() -> None:
    w = world("s0", models=(A,))
    hear(watch(w), state(1))
    (seen,) = w.loop.cluster.view().servers
    assert (seen.device_memory_bytes, seen.dram_bytes, seen.bandwidth["ssd"]) == (2 * GB, 4 * GB, 5e8)
    assert seen.in_dram == {"/models/a"}


async def test_devices_copies_on_ssd_and_the_networks_bandwidth_are_taken_over() -> None:
    w, told = world("s0", models=(A,)), state(1)
    told.devices.add(id=0, memory_bytes=GB)
    told.devices.add(id=3, memory_bytes=2 * GB)
    told.copies.append("https://models/a")
    told.remote_bytes_per_second = 3e7
    hear(watch(w), told)
    (seen,) = w.loop.cluster.view().servers
    assert [(one.id, one.memory_bytes) for one in seen.devices] == [(0, GB), (3, 2 * GB)]
    assert seen.on_ssd == {"https://models/a"}
    assert seen.bandwidth["remote"] == pytest.approx(3e7)


async def test_a_server_whose_workers_are_not_warm_takes_no_starts() -> None:
    w = world("s0", models=(A,))
    cold = state(1)
    cold.workers_ready = False
    hear(watch(w), cold)
    assert w.loop.cluster.view().servers == ()


async def test_a_new_scheduler_leads_with_a_higher_epoch() -> None:
    w = world("s0", models=(A,))
    await watch(w)._outrank(state(1, epoch=7))
    assert w.loop.epoch == 8


async def test_a_scheduler_that_was_deposed_does_not_outrank_its_successor() -> None:
    w = world("s0")
    news = watch(w)
    news.leadership = FakeLeadership(acting=False)
    with pytest.raises(NotLeading):
        await news._outrank(state(1, epoch=7))
    assert w.loop.epoch == 1


async def test_replicas_of_an_earlier_scheduler_are_adopted_where_known_and_take_streams_when_ready() -> None:
    w = world("s0", models=(A,))
    news = watch(w)
    hear(news, state(1, "a-1", "unheard-1", phase=agent_pb2.LOADED))
    assert {name: one.phase for name, one in w.loop.cluster.replicas.items()} == {"a-1": Phase.LOADING}
    hear(news, state(2, "a-1", "unheard-1"))
    assert {name: one.phase for name, one in w.loop.cluster.replicas.items()} == {"a-1": Phase.READY}


async def test_an_adopted_replica_is_known_by_the_definition_that_it_carries() -> None:
    old, new = "0" * 12, "1" * 12
    w = world("s0", models=(replace(A, definition=new, version="2", others=frozenset({"1"})),))
    w.define(replace(A, definition=old, version="1", others=frozenset({"2"}), by_name=True))
    ids = [new_replica_id("a", definition) for definition in (old, new, "2" * 12, "")]
    hear(watch(w), state(1, *ids))
    models = [w.loop.cluster.replicas[replica].model for replica in ids]
    assert [(one.version, one.definition) for one in models] == [("1", old), ("2", new), ("", "2" * 12), ("2", new)]


async def test_a_replica_of_a_model_that_nobody_has_is_ended_but_not_at_once() -> None:
    w = world("s0", models=())
    news = watch(w)
    hear(news, state(1, "a-1"))
    w.clock.now_s = 59.0
    hear(news, state(2, "a-1"))
    await settle()
    assert w.effects.calls == []
    w.clock.now_s = 61.0
    hear(news, state(3, "a-1"))
    await settle()
    assert w.effects.calls == [("release_engine", "s0", "a-1"), ("unload_model", "s0", "a")]


async def test_a_repository_that_comes_late_keeps_its_replicas() -> None:
    w = world("s0", models=())
    news = watch(w)
    hear(news, state(1, "a-1"))
    w.define(A)
    w.clock.now_s = 61.0
    hear(news, state(2, "a-1"))
    assert set(w.loop.cluster.replicas) == {"a-1"}


async def test_what_an_adopted_replicas_engine_promises_is_known() -> None:
    w = world("s0", models=(A,))
    told = state(1, "a-1")
    told.replicas[0].exactness.CopyFrom(agent_pb2.Exactness(kind="exact", reason="proven", contract="0"))
    hear(watch(w), told)
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    assert place.exactness == Exactness(kind="exact", reason="proven", contract="0")


async def test_a_replica_that_is_shown_no_more_is_lost() -> None:
    w = world("s0", models=(A,))
    news = watch(w)
    hear(news, state(1, "a-1"))
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    hear(news, state(2))
    assert place.lost.done()


async def test_a_state_from_before_a_start_ended_says_nothing_about_it() -> None:
    w = world("s0", models=(A,))
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    news = watch(w)
    w.loop.cluster.replicas[place.replica].shown_from_version = 5
    hear(news, state(4))
    assert not place.lost.done()
    hear(news, state(5))
    assert place.lost.done()


async def test_a_new_agent_is_given_time_to_hear_from_its_workers() -> None:
    w = world("s0", models=(A,))
    news = watch(w)
    hear(news, state(9, "a-1"))
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    news._set_agent(False)
    hear(news, state(1))
    assert not place.lost.done()
    news._settle()
    assert place.lost.done()
    news._stop_timers()


async def test_a_second_restart_within_that_time_begins_it_anew() -> None:
    w = world("s0", models=(A,))
    news = watch(w)
    hear(news, state(9, "a-1"))
    for _ in range(2):
        news._set_agent(False)
        hear(news, state(1))
    first, *others = news._timers
    assert others == []
    assert not first.cancelled()
    news._stop_timers()
    assert first.cancelled()


async def test_an_ended_replica_that_is_still_shown_is_released_again() -> None:
    w = world("s0", models=(A,))
    news = watch(w)
    hear(news, state(1, "a-1"))
    await w.loop.release("a", timeout_s=1.0)
    await asyncio.sleep(0)
    hear(news, state(2, "a-1"))
    await asyncio.sleep(0)
    assert [call for call in w.effects.calls if call[0] == "release_engine"] == [("release_engine", S0, "a-1")] * 2
    assert ReplicaId("a-1") not in w.loop.cluster.replicas


async def test_a_server_that_goes_down_takes_its_replicas_with_it() -> None:
    w = world("s0", models=(A,))
    news = watch(w)
    hear(news, state(1, "a-1"))
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    news._set_triton(False)
    assert place.lost.result() == "server s0 went down"
    assert w.loop.cluster.view().servers == ()


async def test_a_start_that_an_earlier_scheduler_began_is_joined_and_not_done_twice() -> None:
    w = world("s0", models=(A,))
    news = watch(w)
    hear(news, state(1, "a-1", phase=agent_pb2.LOADING))
    waiting = asked(w, "x", "a")
    await settle()
    assert not waiting.done()
    hear(news, state(2, "a-1"))
    assert (await waiting).replica == "a-1"
    assert [call for call in w.effects.calls if call[0] == "start_engine"] == []


async def test_a_start_that_an_earlier_scheduler_began_and_that_fails_is_begun_anew_and_nothing_of_it_stays() -> None:
    w = world("s0", "s1", models=(A,))
    news = watch(w)
    hear(news, state(1, "a-1", phase=agent_pb2.LOADING))
    waiting = asked(w, "x", "a")
    await settle()
    hear(news, state(2))
    place = await waiting
    assert place.replica != "a-1"
    assert ("release_engine", S0, "a-1") in w.effects.calls
    assert list(w.loop.cluster.replicas) == [place.replica]


async def test_a_start_of_ours_that_the_agent_does_not_show_yet_is_not_lost() -> None:
    w = world("s0", models=(A,), automatic=False)
    news = watch(w)
    hear(news, state(1))
    waiting = asked(w, "x", "a")
    await settle()
    hear(news, state(2))
    await settle()
    assert len(w.loop.cluster.replicas) == 1
    waiting.cancel()
    await w.loop.close()


async def test_a_start_of_ours_is_ready_when_its_effects_say_so_whatever_the_agent_shows() -> None:
    w = world("s0", models=(A,), automatic=False)
    news = watch(w)
    hear(news, state(1))
    waiting = asked(w, "x", "a")
    await settle()
    (replica,) = w.loop.cluster.replicas
    hear(news, state(2, replica))
    await settle()
    assert not waiting.done()
    waiting.cancel()
    await w.loop.close()


async def test_a_parked_stub_is_no_replica_but_a_place_to_start() -> None:
    w = world("s0", models=(A,))
    hear(watch(w), state(1, "a-1", phase=agent_pb2.PARKED))
    assert w.loop.cluster.replicas == {}
    assert w.loop.cluster.view().servers[0].parked == {"a": "a-1"}


async def test_a_replica_that_turned_into_a_parked_stub_is_lost_and_not_unloaded() -> None:
    w = world("s0", models=(A,))
    news = watch(w)
    hear(news, state(1, "a-1"))
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    hear(news, state(2, "a-1", phase=agent_pb2.PARKED))
    assert place.lost.done()
    await asyncio.sleep(0)
    assert w.effects.calls == []


async def test_a_replica_that_was_to_be_parked_and_is_still_shown_is_parked_again() -> None:
    w = world("s0", models=(A,), limits=ControlLimits(keep_alive_s=1.0))
    news = watch(w)
    hear(news, state(1, "a-1"))
    w.clock.now_s = 1.0
    w.loop.upkeep.look()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    hear(news, state(2, "a-1"))
    await asyncio.sleep(0)
    assert w.effects.calls == [("park_engine", S0, "a-1")] * 2


def refused(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "the call does not show the cluster's secret"),
        (grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-protocol-x'"),
    ],
)
async def test_a_server_that_wants_another_secret_is_told_of_once(caplog, code: grpc.StatusCode, details: str) -> None:
    news = watch(world("s0", models=(A,)))
    for _ in range(3):
        news._tell_refusal("agent", refused(code, details))
    assert [record.getMessage() for record in caplog.records] == [f"agent_refuses server=s0 reason={details!r}"]


async def test_a_server_that_is_only_away_is_no_refusal(caplog) -> None:
    watch(world("s0", models=(A,)))._tell_refusal("triton", refused(grpc.StatusCode.UNAVAILABLE, "Connection refused"))
    assert caplog.records == []
