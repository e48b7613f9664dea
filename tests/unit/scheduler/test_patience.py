"""What is waited for instead of a start elsewhere, and when it was expected in vain."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from serverless_triton.scheduler.admission import ServerName, StreamId
from serverless_triton.scheduler.decision import Decision, Start, StartRequest, Use, Wait
from serverless_triton.scheduler.expectations import first_ends_s, last_ends_s, remaining
from serverless_triton.scheduler.policy import choose, in_time
from serverless_triton.scheduler.view import ReplicaView
from tests.unit.scheduler.worlds import GB, World, asked, model, replica, server, settle, view, world

A, B = model("a"), model("b")
NOW_S = 100.0
NEAR = server("near", in_dram=frozenset({A.checkpoint}), device_memory_bytes=GB)  # starts a within 0.3 s
FAR = server("far", device_memory_bytes=GB)  # within 1.25 s


def busy(*, idle_at_s: float | None, **changes: object) -> ReplicaView:
    return replace(replica("b-1", "near", B, streams=1), idle_at_s=idle_at_s, **changes)  # type: ignore[arg-type]


def decided(*replicas: ReplicaView, now_s: float | None = NOW_S) -> Decision:
    return choose(view([NEAR, FAR], list(replicas), now_s=now_s), StartRequest(model=A))


def test_room_where_the_weights_are_near_is_waited_for_where_that_is_sooner() -> None:
    assert decided(busy(idle_at_s=NOW_S + 0.5)).action == Wait(reason="a place is free sooner", until_s=NOW_S + 0.5)


@pytest.mark.parametrize(
    "holder",
    [
        busy(idle_at_s=NOW_S + 2.0),  # 2.3 s in all, beside a start of 1.25 s that displaces what took a second
        busy(idle_at_s=NOW_S - 0.1),  # it is late
        busy(idle_at_s=None),
        busy(idle_at_s=NOW_S + 0.5, pinned=True),
        busy(idle_at_s=NOW_S + 0.5, priority=1),
    ],
)
def test_room_that_comes_later_or_never_or_is_late_is_not_waited_for(holder: ReplicaView) -> None:
    action = decided(holder).action
    assert isinstance(action, Start)
    assert action.candidate.server == "far"


def test_what_a_start_displaces_counts_against_it() -> None:
    assert decided(busy(idle_at_s=NOW_S + 1.5)).action == Wait(reason="a place is free sooner", until_s=NOW_S + 1.5)


def test_nobody_waits_for_longer_than_the_start_would_take_however_often_something_is_expected() -> None:
    waits = decided(busy(idle_at_s=NOW_S + 0.5))
    assert in_time(waits, NOW_S - 0.7) == waits
    action = in_time(waits, NOW_S - 0.8).action
    assert isinstance(action, Start)
    assert action.candidate == waits.candidates[0]


def test_nothing_is_waited_for_where_nobody_tells_the_time() -> None:
    assert isinstance(decided(busy(idle_at_s=NOW_S + 0.5), now_s=None).action, Start)


def test_as_many_have_to_go_as_make_room() -> None:
    near = replace(NEAR, device_memory_bytes=2 * GB)
    large = replace(A, device_bytes=2 * GB)
    first, last = busy(idle_at_s=NOW_S + 0.1), busy(idle_at_s=NOW_S + 0.4, id="b-2")
    far = replace(FAR, device_memory_bytes=2 * GB)
    action = choose(view([near, far], [first, last], now_s=NOW_S), StartRequest(model=large)).action
    assert action == Wait(reason="a place is free sooner", until_s=NOW_S + 0.4)


def test_of_a_place_and_room_that_is_waited_for_which_comes_first() -> None:
    full = replace(replica("a-1", "other", A, streams=2), frees_at_s=NOW_S + 0.6)
    other = server("other", device_memory_bytes=GB)
    for idle_at_s, until_s in ((NOW_S + 0.1, NOW_S + 0.1), (NOW_S + 0.5, NOW_S + 0.6)):
        seen = view([NEAR, FAR, other], [busy(idle_at_s=idle_at_s), full], now_s=NOW_S)
        assert choose(seen, StartRequest(model=A)).action == Wait(reason="a place is free sooner", until_s=until_s)


def test_a_replica_that_is_there_is_used_whatever_may_come() -> None:
    there = replica("a-1", "far", A)
    assert isinstance(decided(busy(idle_at_s=NOW_S + 0.01), there).action, Use)


def test_streams_go_on_as_long_as_usual_and_then_as_long_again() -> None:
    assert [remaining(4.0, elapsed_s) for elapsed_s in (0.0, 1.0, 3.0, 8.0)] == [4.0, 3.0, 3.0, 8.0]
    assert first_ends_s([4.0, 4.0]) == pytest.approx(2.0)
    assert last_ends_s([4.0, 4.0]) == pytest.approx(6.0)
    assert last_ends_s([8.0, 1.0]) == pytest.approx(8.5)


async def taught(hold_s: float, *servers: str) -> World:
    """A stream of a has ended after so long; a server has room for two replicas."""
    w = world(*servers, models=(A, B, model("c")))
    place = await w.loop.admit(StreamId("first"), "a", timeout_s=1.0)
    w.clock.now_s += hold_s
    w.loop.finish(place)
    return w


async def test_a_full_replica_is_expected_to_have_a_place_and_a_busy_one_to_become_idle() -> None:
    w = await taught(8.0, "s0")
    places = [await w.loop.admit(StreamId(name), "a", timeout_s=1.0) for name in "xy"]
    (one,) = w.loop.cluster.view(w.clock()).of_model("a")
    assert one.frees_at_s == pytest.approx(8.0 + 4.0)
    assert one.idle_at_s == pytest.approx(8.0 + 12.0)
    w.clock.now_s += 2.0
    w.loop.finish(places[0])
    (one,) = w.loop.cluster.view(w.clock()).of_model("a")
    assert one.frees_at_s is None
    assert one.idle_at_s == pytest.approx(10.0 + w.loop._prospects.holds.typical_s("a") - 2.0)  # type: ignore[operator]


async def test_who_waits_for_a_place_gets_it_and_nothing_is_started() -> None:
    w = await taught(0.5, "s0", "s1")
    places = [await w.loop.admit(StreamId(name), "a", timeout_s=1.0) for name in "xy"]
    waiting = asked(w, "z", "a")
    await settle()
    assert not waiting.done()
    w.loop.finish(places[0])
    assert (await waiting).replica == places[0].replica
    assert len(w.effects.orders) == 1


async def test_a_place_that_is_late_is_not_waited_for() -> None:
    w = await taught(0.1, "s0", "s1")
    for name in "xy":
        await w.loop.admit(StreamId(name), "a", timeout_s=1.0)
    began_s, real = asyncio.get_running_loop().time(), asyncio.get_running_loop()
    since_s = w.clock.now_s
    w.loop.clock = w.loop._expectations.clock = lambda: since_s + real.time() - began_s
    place = await asyncio.wait_for(asked(w, "z", "a"), 5.0)
    assert place.server == ServerName("s1")
    assert 0.05 <= real.time() - began_s < 4.0


async def test_the_more_wait_for_a_place_the_sooner_another_replica_is_started() -> None:
    w = await taught(0.8, "s0", "s1")
    for name in "xy":
        await w.loop.admit(StreamId(name), "a", timeout_s=1.0)
    waiting = [asked(w, f"z{number}", "a") for number in range(4)]
    await settle()
    started = [order.model for order in w.effects.orders]
    assert started == ["a", "a"]
    for one in waiting:
        one.cancel()
