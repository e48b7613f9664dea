"""What can be told of waits, over recorded effects: events by hand, no sleep."""

from __future__ import annotations

import pytest

from serverless_triton.scheduler.admission import Outlook, ServerName, StreamId
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.effects import EffectFailed
from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed, ModelTooLarge, NoCapacity, UnknownModel
from serverless_triton.scheduler.identity import ALL, Caller
from serverless_triton.scheduler.outlook import RETRY_AFTER_S, HoldTimes
from tests.unit.scheduler.worlds import GB, World, asked, model, settle, world

A = model("a")
S0 = ServerName("s0")
COLD_START_S = 1.1  # of 1 GB at the assumed 1 GB/s, and the assumed 0.1 s beside


async def timed_out(w: World, stream: str) -> float | None:
    with pytest.raises(AdmissionTimeout) as caught:
        await w.loop.admit(StreamId(stream), "a", timeout_s=0.0)
    return caught.value.retry_after_s


async def test_who_cannot_wait_for_a_start_hears_how_long_it_takes_from_now() -> None:
    w = world("s0", models=(model("a", size=5 * GB // 2),), automatic=False)
    assert await timed_out(w, "x") == pytest.approx(2.6)
    w.clock.now_s = 1.0
    assert await timed_out(w, "y") == pytest.approx(1.6)


async def test_a_start_that_is_due_is_worth_a_moment() -> None:
    w = world("s0", models=(A,), automatic=False)
    await timed_out(w, "x")
    w.clock.now_s = 100.0
    assert await timed_out(w, "y") == RETRY_AFTER_S


async def test_who_finds_the_queue_full_hears_when_it_moves() -> None:
    w = world("s0", models=(A,), automatic=False, limits=ControlLimits(max_waiting_per_model=1))
    waiting = asked(w, "x", "a")
    await settle()
    with pytest.raises(NoCapacity) as caught:
        await w.loop.admit(StreamId("y"), "a", timeout_s=1.0)
    assert caught.value.retry_after_s == pytest.approx(COLD_START_S)
    waiting.cancel()


async def test_where_every_place_is_taken_the_streams_before_say_how_soon_one_is_free() -> None:
    w = world("s0", models=(A,))
    for stream, held_s in (("u", 8.0), ("v", 8.0)):
        place = await w.loop.admit(StreamId(stream), "a", timeout_s=1.0)
        w.clock.now_s += held_s
        w.loop.finish(place)
    for stream in "xy":
        await w.loop.admit(StreamId(stream), "a", timeout_s=1.0)
    assert await timed_out(w, "z") == pytest.approx(8.0 / A.max_streams)


async def test_where_no_stream_has_ended_yet_nothing_is_known() -> None:
    w = world("s0", models=(A,))
    for stream in "xy":
        await w.loop.admit(StreamId(stream), "a", timeout_s=1.0)
    assert await timed_out(w, "z") == RETRY_AFTER_S


async def test_warming_a_model_says_nothing_about_how_long_places_are_held() -> None:
    w = world("s0", models=(A,))
    place = await w.loop.admit(StreamId("u"), "a", timeout_s=1.0)
    w.clock.now_s = 20.0
    w.loop.finish(place)
    await w.loop.warm("a", timeout_s=1.0)
    for stream in "xy":
        await w.loop.admit(StreamId(stream), "a", timeout_s=1.0)
    assert await timed_out(w, "z") == pytest.approx(20.0 / A.max_streams)


@pytest.mark.parametrize(("code", "retry_after_s"), [("UNAVAILABLE", RETRY_AFTER_S), ("INVALID_ARGUMENT", None)])
async def test_only_a_start_that_may_go_well_another_time_is_worth_another_try(
    code: str, retry_after_s: float | None
) -> None:
    w = world("s0", models=(A,), automatic=False, limits=ControlLimits(max_failed_starts=1))
    waiting = asked(w, "x", "a")
    await settle()
    w.effects.resolve("start_engine", S0, "a", EffectFailed(code, "no"))
    w.effects.resolve("load_model", S0, "a")
    with pytest.raises(LoadFailed) as caught:
        await waiting
    assert caught.value.retry_after_s == retry_after_s


async def test_a_wait_that_is_over_with_its_scheduler_may_be_tried_again() -> None:
    w = world("s0", models=(A,), automatic=False)
    waiting = asked(w, "x", "a")
    await settle()
    await w.loop.close()
    with pytest.raises(LoadFailed, match="shutting down") as caught:
        await waiting
    assert caught.value.retry_after_s == RETRY_AFTER_S


async def test_a_place_that_is_free_is_position_0() -> None:
    w = world("s0", models=(A,))
    await w.loop.warm("a", timeout_s=1.0)
    assert await w.loop.outlook("a") == Outlook(model="a", waiting=0, queue_position=0, estimated_start_s=0.0)


async def test_a_cold_model_is_told_its_predicted_start_and_not_started_for_asking() -> None:
    w = world("s0", models=(A,))
    outlook = await w.loop.outlook("a")
    assert (outlook.waiting, outlook.queue_position) == (0, 1)
    assert outlook.estimated_start_s == pytest.approx(COLD_START_S)
    await settle()
    assert w.effects.calls == []


async def test_a_start_that_is_under_way_is_told_what_is_left_of_it() -> None:
    w = world("s0", models=(model("a", max_streams=3),), automatic=False)
    waiting = [asked(w, stream, "a") for stream in "xy"]
    await settle()
    w.clock.now_s = 0.75
    outlook = await w.loop.outlook("a")
    assert (outlook.waiting, outlook.queue_position) == (2, 3)
    assert outlook.estimated_start_s == pytest.approx(COLD_START_S - 0.75)
    for task in waiting:
        task.cancel()


async def test_each_one_before_it_takes_a_place_that_becomes_free() -> None:
    w = world("s0", models=(A,))
    w.loop.finish(await w.loop.admit(StreamId("u"), "a", timeout_s=1.0))
    place = await w.loop.admit(StreamId("v"), "a", timeout_s=1.0)
    w.clock.now_s = 10.0
    w.loop.finish(place)
    mean_s = 0.2 * 10.0  # of 0 s and then 10 s
    waiting = [asked(w, stream, "a") for stream in ("x", "y", "p", "q", "r")]
    await settle()
    outlook = await w.loop.outlook("a")
    assert (outlook.waiting, outlook.queue_position) == (3, 4)
    assert outlook.estimated_start_s == pytest.approx(4 * mean_s / A.max_streams)
    for task in waiting:
        task.cancel()


async def test_a_tenants_outlook_is_its_own() -> None:
    w = world("s0", models=(A,))
    for stream in "xy":
        await w.loop.admit(StreamId(stream), "a", timeout_s=1.0)
    waiting = [asked(w, stream, "a") for stream in ("p", "q", "r")]
    await settle()
    stranger = await w.loop.outlook("a", caller=Caller(tenant="other", models=ALL))
    assert (stranger.waiting, stranger.queue_position) == (3, 2)
    assert ((await w.loop.outlook("a")).queue_position, (await w.loop.outlook("a", priority=1)).queue_position) == (
        4,
        1,
    )
    for task in waiting:
        task.cancel()


async def test_without_a_server_nothing_says_when() -> None:
    w = world("s0", models=(A,))
    w.loop.cluster.servers[S0].triton_up = False
    assert await w.loop.outlook("a") == Outlook(model="a", waiting=0, queue_position=1, estimated_start_s=None)


async def test_a_model_that_never_starts_is_no_matter_of_waiting() -> None:
    w = world("s0", models=(model("huge", device_bytes=9 * GB),))
    with pytest.raises(ModelTooLarge, match="lower its max_streams"):
        await w.loop.outlook("huge")
    with pytest.raises(UnknownModel):
        await w.loop.outlook("nope")


def test_hold_times_follow_what_streams_do_now() -> None:
    holds = HoldTimes()
    assert holds.mean_s("a") is None
    for number in range(30):
        holds.began(StreamId(f"x{number}"), 0.0)
        holds.ended(StreamId(f"x{number}"), "a", 4.0 if number < 10 else 2.0)
    assert holds.mean_s("a") == pytest.approx(2.0, abs=0.05)
    assert holds.mean_s("b") is None


def test_a_stream_that_ends_twice_counts_once() -> None:
    holds = HoldTimes()
    holds.began(StreamId("x"), 0.0)
    holds.ended(StreamId("x"), "a", 3.0)
    holds.ended(StreamId("x"), "a", 300.0)
    assert holds.mean_s("a") == 3.0
