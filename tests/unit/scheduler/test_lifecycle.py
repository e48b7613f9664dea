"""What is due, what is missing, what is worth prefetching: pure functions of a view and the time."""

from __future__ import annotations

from dataclasses import replace

from serverless_triton.scheduler.admission import ServerName
from serverless_triton.scheduler.demand import Windows
from serverless_triton.scheduler.lifecycle import (
    GRACE_S,
    Plan,
    Prefetch,
    Standing,
    Wish,
    plan,
    prefetches,
)
from serverless_triton.scheduler.view import ModelView, ReplicaView
from tests.unit.scheduler.worlds import GB, model, replica, server, view

M = model("m")
AWAY = Windows(away_s=50.0, until_s=80.0)


def planned(standing: Standing, now_s: float, *replicas: ReplicaView) -> Plan:
    return plan(view([server("s0"), server("s1")], list(replicas)), {standing.model.name: standing}, now_s)


def test_what_is_idle_for_its_keep_alive_goes_and_the_next_time_is_named() -> None:
    found = planned(
        Standing(model=M, keep_alive_s=10.0),
        11.0,
        replica("old", "s0", M, idle_since_s=1.0),
        replica("new", "s1", M, idle_since_s=6.0),
    )
    assert found == Plan(park=("old",), next_s=16.0)  # type: ignore[arg-type]


def test_neither_used_nor_loading_replicas_go() -> None:
    busy, loading = replica("busy", "s0", M, streams=1), replica("loading", "s1", M, loading=True)
    assert planned(Standing(model=M, keep_alive_s=0.0), 99.0, busy, loading) == Plan()


def test_without_a_keep_alive_idle_replicas_stay_until_room_is_needed() -> None:
    assert planned(Standing(model=M), 1e6, replica("r", "s0", M)) == Plan()


def test_a_pinned_model_stays() -> None:
    pinned = replace(M, pinned=True)
    assert planned(Standing(model=pinned, keep_alive_s=1.0), 1e6, replica("r", "s0", pinned)) == Plan()


def test_as_many_stay_as_there_must_be_and_missing_ones_are_needed() -> None:
    least = replace(M, min_replicas=1)
    both = replica("r1", "s0", least, idle_since_s=1.0), replica("r2", "s1", least, idle_since_s=2.0)
    assert planned(Standing(model=least, keep_alive_s=1.0), 99.0, *both).park == ("r1",)
    assert planned(Standing(model=least, keep_alive_s=1.0), 99.0).need == ("m",)


def test_a_learned_model_goes_at_once_where_nobody_comes_for_a_while() -> None:
    standing = Standing(model=M, windows=AWAY, idle_since_s=100.0)
    idle = replica("r", "s0", M, idle_since_s=100.0)
    assert planned(standing, 100.5, idle) == Plan(next_s=100.0 + GRACE_S)
    assert planned(standing, 100.0 + GRACE_S, idle) == Plan(park=(idle.id,), next_s=150.0)


def test_it_is_back_before_somebody_is_expected_and_goes_when_nobody_is() -> None:
    standing = Standing(model=M, windows=AWAY, idle_since_s=100.0)
    assert planned(standing, 149.0) == Plan(next_s=150.0)
    assert planned(standing, 150.0) == Plan(start=("m",))
    back = replica("r", "s0", M, idle_since_s=150.5)
    assert planned(standing, 151.0, back) == Plan(next_s=180.0)
    assert planned(standing, 180.0, back) == Plan(park=(back.id,))
    assert planned(standing, 181.0) == Plan()


def wish(name: str, chance: float, **changes: object) -> Wish:
    wanted: ModelView = replace(model(name), **changes)  # type: ignore[arg-type]
    return Wish(model=wanted, chance=chance)


def test_the_likeliest_for_their_size_are_prefetched_within_the_budget() -> None:
    wishes = [wish("large", 0.9, checkpoint_bytes=3 * GB), wish("a", 0.5), wish("b", 0.6), wish("c", 0.4)]
    found = prefetches(view([server("s0")]), wishes, {}, 2 * GB)
    assert found == (Prefetch(server=ServerName("s0"), model="b"), Prefetch(server=ServerName("s0"), model="a"))


def test_prefetches_spread_over_servers_by_the_room_that_is_left() -> None:
    world = view([server("s0"), server("s1")])
    found = prefetches(world, [wish("a", 0.5), wish("b", 0.6)], {ServerName("s0"): GB}, 3 * GB)
    assert [(one.model, one.server) for one in found] == [("b", "s1"), ("a", "s0")]


def test_what_is_in_dram_unlikely_or_another_backends_is_not_prefetched() -> None:
    world = view([server("s0", in_dram=frozenset({"/models/there"}))])
    wishes = [wish("there", 1.0), wish("unlikely", 0.01), wish("foreign", 1.0, foreign=True)]
    assert prefetches(world, wishes, {}, 10 * GB) == ()


def test_pinned_models_are_prefetched_whatever_the_budget() -> None:
    found = prefetches(view([server("s0")]), [wish("p", 0.0, pinned=True)], {}, 0)
    assert found == (Prefetch(server=ServerName("s0"), model="p"),)
