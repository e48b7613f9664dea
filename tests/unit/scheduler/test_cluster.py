"""What views show of the control loop's picture, change by change."""

from __future__ import annotations

import asyncio

from serverless_triton.scheduler.admission import ReplicaId, ServerName, StreamId
from serverless_triton.scheduler.cluster import Cluster, ServerState
from serverless_triton.scheduler.view import ClusterView, Phase, ReplicaView, ServerView
from tests.unit.scheduler.worlds import asked, model, settle, world

A, B, C = model("a"), model("b"), model("c")


def shown(view: ClusterView) -> tuple[tuple[ServerView, ...], tuple[ReplicaView, ...]]:
    return view.servers, view.replicas


def anew(cluster: Cluster) -> ClusterView:
    fresh = Cluster(
        cluster.servers, cluster.replicas, cluster.failed, clock=cluster.clock, calibration=cluster.calibration
    )
    return fresh.view()


async def test_views_that_follow_named_changes_show_what_one_made_anew_shows() -> None:
    w = world("s0", "s1", models=(A, B, C), automatic=False)
    waiting = [asked(w, f"{name}-{number}", name) for number in range(3) for name in "abc"]
    cluster = w.loop.cluster
    for _ in range(40):
        await settle()
        assert shown(cluster.view()) == shown(anew(cluster))
        if not w.effects.pending:
            break
        w.effects.resolve(*sorted(w.effects.pending)[0])
    places = [one.result() for one in waiting if one.done()]
    assert places
    for place in places:
        w.loop.finish(place)
        await settle()
        assert shown(cluster.view()) == shown(anew(cluster))
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_load_from_ssd_is_in_its_servers_queue_until_it_ends() -> None:
    w = world("s0", models=(A,), automatic=False)
    waiting = asked(w, "x", "a")
    await settle()
    assert w.loop.cluster.view().servers[0].queued_bytes == A.checkpoint_bytes
    w.effects.resolve("start_engine", ServerName("s0"), "a")
    w.effects.resolve("load_model", ServerName("s0"), "a")
    await waiting
    assert w.loop.cluster.view().servers[0].queued_bytes == 0


async def test_a_queue_gets_shorter_by_time_alone_and_views_of_before_are_over() -> None:
    w = world("s0", models=(A,), automatic=False)
    waiting = asked(w, "x", "a")
    await settle()
    before = w.loop.cluster.view()
    w.clock.now_s = 0.5
    after = w.loop.cluster.view()
    assert after.servers[0].queued_bytes == A.checkpoint_bytes // 2
    assert float(after.index.columns.queue_s[0]) == 0.5
    assert not before.is_current
    waiting.cancel()


async def test_a_server_that_takes_no_starts_is_not_in_the_view_but_its_replicas_are() -> None:
    w = world("s0", models=(A,))
    place = await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    w.loop.cluster.servers[ServerName("s0")].agent_up = False
    w.loop.cluster.changed(server=ServerName("s0"))
    view = w.loop.cluster.view()
    assert (view.servers, [one.id for one in view.replicas]) == ((), [ReplicaId(place.replica)])
    assert view.replicas[0].phase is Phase.READY


def test_a_view_is_over_with_the_next_change() -> None:
    cluster = Cluster({ServerName("s0"): ServerState(name=ServerName("s0"), grpc_address="")})
    view = cluster.view()
    cluster.changed(server=ServerName("s0"))
    cluster.view()
    assert not view.is_current
