"""Starts that were estimated, and what becomes of what they took: events by hand, no sleep."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serverless_triton.scheduler.admission import ServerName, Span, StreamId
from serverless_triton.scheduler.cluster import Read
from serverless_triton.scheduler.effects import EngineStarted
from serverless_triton.scheduler.estimator import estimate_start
from serverless_triton.scheduler.start_sequence import actual_terms
from serverless_triton.scheduler.status import cluster_status
from tests.unit.scheduler.worlds import GB, asked, model, settle, world

A, B = model("a"), model("b")
S0 = ServerName("s0")


def queued_bytes(w) -> int:
    return w.loop.cluster.view().servers[0].queued_bytes


async def test_the_load_queue_holds_what_starts_under_way_have_still_to_read() -> None:
    w = world("s0", models=(A, B), automatic=False)
    first = asked(w, "x", "a")  # 1 GB at the assumed 1 GB/s
    await settle()
    assert queued_bytes(w) == GB
    w.clock.now_s = 0.25
    assert queued_bytes(w) == pytest.approx(0.75 * GB)
    second = asked(w, "y", "b")
    await settle()
    assert queued_bytes(w) == pytest.approx(1.75 * GB)
    w.clock.now_s = 1.5  # the first has been read, and half of the second
    assert queued_bytes(w) == pytest.approx(0.5 * GB)
    first.cancel()
    second.cancel()


async def test_a_start_behind_another_is_predicted_to_wait_for_the_rest_of_it() -> None:
    w = world("s0", models=(A, B), automatic=False)
    first = asked(w, "x", "a")
    await settle()
    w.clock.now_s = 0.4
    second = asked(w, "y", "b")
    await settle()
    for name in "ab":
        w.effects.resolve("start_engine", S0, name)
        w.effects.resolve("load_model", S0, name)
    start = (await second).start
    assert start is not None
    assert start.comparison is not None
    assert start.comparison.predicted.queue_s == pytest.approx(0.6)
    await first


async def test_loads_from_afar_have_a_queue_of_their_own() -> None:
    far, near = replace(A, checkpoint="https://models/a"), B
    w = world("s0", models=(far, near), automatic=False)
    first = asked(w, "x", "a")
    await settle()
    (server,) = w.loop.cluster.view().servers
    assert (server.queued_bytes, server.remote_queued_bytes) == (0, GB)
    assert estimate_start(server, near).queue_s == 0.0
    behind = replace(far, name="c", checkpoint="https://models/c")
    assert estimate_start(server, behind).queue_s == estimate_start(server, behind).transfer_s
    first.cancel()


async def test_what_is_ready_reads_no_more() -> None:
    w = world("s0", models=(A,))
    await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    assert queued_bytes(w) == 0


def test_what_was_to_be_read_later_remains_whole_and_never_grows() -> None:
    read = Read(tier="ssd", bytes=100, begins_s=1.0, ends_s=3.0)
    assert [read.remaining_bytes(now_s) for now_s in (0.0, 1.0, 2.0, 3.0, 9.0)] == [100, 100, 50, 0, 0]


async def test_every_start_teaches_and_the_next_is_predicted_better() -> None:
    w = world("s0", models=(A,), automatic=False)
    errors = []
    for number in range(12):
        w.clock.now_s = 10.0 * number
        waiting = asked(w, f"x{number}", "a")
        await settle()
        w.clock.now_s += 3.0  # the assumed figures say 1.1
        w.effects.resolve("start_engine", S0, "a")
        w.effects.resolve("load_model", S0, "a")
        place = await waiting
        assert place.start is not None
        assert place.start.comparison is not None
        errors.append(place.start.comparison.relative_error)
        w.loop.finish(place, broken=True)  # it goes, and its stub with it
        await settle()
        w.effects.resolve("release_engine", S0, place.replica)
        await settle()
        w.effects.resolve("unload_model", S0, "a")
        await settle()
    assert errors[0] > 0.5
    assert errors[-1] < 0.05


def test_what_a_start_took_is_told_by_cause() -> None:
    spans = (Span(name="store.load", start_s=1.0, end_s=2.0), Span(name="store.queue", start_s=1.0, end_s=1.25))
    engine = EngineStarted(version=1, tier="ssd", bytes=1, spans=spans)
    terms = actual_terms(engine, room_s=0.5, total_s=2.0, attach_s=0.05)
    assert (terms.room_s, terms.queue_s, terms.transfer_s) == (0.5, 0.25, pytest.approx(0.70))
    assert terms.total_s == pytest.approx(2.0)


async def test_status_shows_every_figure_with_its_error() -> None:
    w = world("s0", models=(A,))
    await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    told = cluster_status(w.loop)["servers"][0]["calibration"]
    assert told["starts"] == 1
    assert told["bandwidth_bytes_per_second"]["ssd"] == {
        "value": pytest.approx(1e9),
        "error": pytest.approx(1.0, rel=0.1),
    }
    assert set(told["fixed_start_s"]["parked"]["dram"]) == {"value", "error"}
