"""Whose turn it is among those that wait: events by hand, no sleep."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_triton.scheduler.admission import ReplicaId, StreamId
from serverless_triton.scheduler.errors import NoCapacity
from serverless_triton.scheduler.fair_share import DEFAULT_LEVEL, LEVELS, SECONDS_A_LEVEL
from serverless_triton.scheduler.identity import ALL, Caller
from serverless_triton.scheduler.waiting_room import ModelOrder, Waiting, WaitingRoom
from tests.unit.scheduler.worlds import model

R = ReplicaId("r")


def waiting(
    stream: str,
    tenant: str = "",
    *,
    of: str = "m",
    weight: int = 1,
    priority: int = 0,
    since_s: float = 0.0,
    broke_on: ReplicaId | None = None,
) -> Waiting:
    return Waiting(
        avoid=frozenset() if broke_on is None else frozenset({broke_on}),
        stream=StreamId(stream),
        order=ModelOrder(view=model(of), parameters={}),
        since_s=since_s,
        caller=Caller(tenant=tenant, models=ALL, weight=weight),
        priority=priority,
    )


def entered(*several: Waiting) -> WaitingRoom:
    room = WaitingRoom()
    for one in several:
        room.enter(one)
    return room


def place_next(room: WaitingRoom) -> Waiting:
    """Whoever is next gets a place and leaves."""
    one = next(room.turns())
    room.join(one, R)
    room.leave(one)
    return one


def placed(room: WaitingRoom, number: int) -> list[str]:
    return [place_next(room).stream for _ in range(number)]


async def test_one_tenants_requests_come_in_order_of_their_age() -> None:
    room = entered(waiting("x", since_s=2.0), waiting("y", since_s=1.0), waiting("z", since_s=2.0))
    assert [one.stream for one in room.turns()] == ["y", "x", "z"]


async def test_a_tenant_that_asks_much_does_not_hold_up_one_that_asks_little() -> None:
    room = entered(*(waiting(f"a{n}", "a") for n in range(5)), waiting("b0", "b", since_s=9.0))
    assert placed(room, 3) == ["a0", "b0", "a1"]


async def test_places_go_by_weight() -> None:
    room = entered(
        *(waiting(f"a{n}", "a", weight=3) for n in range(20)), *(waiting(f"b{n}", "b", weight=1) for n in range(20))
    )
    first = placed(room, 12)
    assert sum(stream.startswith("a") for stream in first) == 9


async def test_a_priority_counts_within_its_tenant_only() -> None:
    room = entered(
        waiting("a-later", "a", since_s=1.0, priority=9),
        waiting("a-first", "a", since_s=2.0, priority=1),
        waiting("b-plain", "b", since_s=0.0),
    )
    assert placed(room, 3) == ["b-plain", "a-first", "a-later"]


@pytest.mark.parametrize("priority", [0, DEFAULT_LEVEL, LEVELS + 1])
async def test_no_level_is_the_default_level(priority: int) -> None:
    room = entered(waiting("x", priority=priority), waiting("y", priority=DEFAULT_LEVEL), waiting("z", priority=1))
    assert placed(room, 3) == ["z", "x", "y"]


async def test_a_low_priority_waits_a_bounded_time_behind_an_endless_row_of_high_ones() -> None:
    room = entered(waiting("low", priority=LEVELS))
    bound_s = (LEVELS - 1) * SECONDS_A_LEVEL
    for second in range(int(bound_s) + 1):
        room.enter(waiting(f"high{second}", priority=1, since_s=float(second)))
        if place_next(room).stream == "low":
            assert second == bound_s
            return
    raise AssertionError("it never came")


async def test_who_gets_a_place_meanwhile_counts_in_whose_turn_is_next() -> None:
    room = entered(*(waiting(f"a{n}", "a") for n in range(3)), *(waiting(f"b{n}", "b", since_s=1.0) for n in range(3)))
    seen = []
    for one in room.turns():
        seen.append(one.stream)
        if one.caller.tenant == "a":
            room.join(one, R)
    assert seen == ["a0", "b0", "b1", "b2", "a1", "a2"]


async def test_who_finds_no_place_pays_nothing() -> None:
    room = entered(waiting("a0", "a"), waiting("a1", "a"), waiting("b0", "b", since_s=1.0))
    assert [one.stream for one in room.turns()] == ["a0", "a1", "b0"]
    assert [one.stream for one in room.turns()] == ["a0", "a1", "b0"]


async def test_one_that_has_to_wait_speaks_for_all_that_ask_the_same() -> None:
    room = entered(
        waiting("a0", "a"),
        waiting("a1", "a"),
        waiting("b0", "b", since_s=1.0),
        waiting("b-n", "b", of="n", since_s=2.0),
    )
    seen = []
    for one in room.turns(7):
        seen.append(one.stream)
        room.rest(one, 7)
    assert seen == ["a0", "b-n"]


async def test_who_has_to_wait_is_asked_again_once_something_has_changed() -> None:
    room = entered(first := waiting("a0"), waiting("other", of="n"), waiting("a1", since_s=1.0))
    room.rest(first, 7)
    room.enter(waiting("a2", since_s=2.0))
    assert [one.stream for one in room.turns(7)] == ["other"]
    assert [one.stream for one in room.turns(8)] == ["a0", "other", "a1", "a2"]


async def test_who_leaves_is_no_longer_asked_and_no_longer_counted() -> None:
    room = entered(waiting("a0", "a"), gone := waiting("a1", "a"), waiting("a2", "a"))
    assert room.leave(gone)
    assert not room.leave(gone)
    assert [one.stream for one in room.turns()] == ["a0", "a2"]
    assert room.by_model() == {"m": 2}


async def test_a_start_that_fails_costs_its_tenant_nothing_more() -> None:
    unlucky = waiting("a0", "a")
    room = entered(unlucky, waiting("a1", "a"), waiting("b0", "b", since_s=1.0), waiting("b1", "b", since_s=1.0))
    for _ in range(3):
        room.join(unlucky, R)
        room.part(unlucky, unlucky.request)
    room.leave(unlucky)
    assert placed(room, 3) == ["b0", "a1", "b1"]


async def test_an_empty_room_forgets_who_had_how_much() -> None:
    room = entered(*(waiting(f"a{n}", "a") for n in range(9)))
    placed(room, 9)
    room.enter(waiting("a9", "a"))
    room.enter(waiting("b0", "b", since_s=1.0))
    assert placed(room, 2) == ["a9", "b0"]


async def test_a_newcomer_is_told_who_comes_before_it() -> None:
    room = entered(*(waiting(f"a{n}", "a") for n in range(4)), waiting("other", "a", of="n"))
    starting = waiting("a-starting", "a")
    room.enter(starting)
    room.join(starting, R)
    mine, stranger = room.standing(waiting("", "a", since_s=5.0)), room.standing(waiting("", "b", since_s=5.0))
    urgent = room.standing(waiting("", "a", since_s=5.0, priority=1))
    assert (mine.starting, mine.before, mine.after) == (1, 4, 0)
    assert (urgent.before, urgent.after) == (0, 4)
    assert (stranger.before, stranger.after) == (0, 4)


def refused(room: WaitingRoom, newcomer: Waiting, limit: int) -> bool:
    with suppress(NoCapacity):
        room.make_space(newcomer, limit, lambda: 7.0)
        room.enter(newcomer)
        return False
    return True


async def test_who_is_refused_hears_when_to_come_back() -> None:
    with pytest.raises(NoCapacity, match="1 requests for model 'm' wait already") as caught:
        entered(waiting("a0")).make_space(waiting("a1"), 1, lambda: 7.0)
    assert caught.value.retry_after_s == 7.0


async def test_a_tenant_that_fills_a_queue_makes_space_for_another() -> None:
    mine = [waiting(f"a{n}", "a", since_s=float(n)) for n in range(4)]
    room = entered(*mine)
    assert refused(room, waiting("a4", "a", since_s=9.0), 4)
    assert not refused(room, waiting("b0", "b", since_s=9.0), 4)
    assert isinstance(mine[3].place.exception(), NoCapacity)
    assert not refused(room, waiting("b1", "b", since_s=9.0), 4)
    assert refused(room, waiting("b2", "b", since_s=9.0), 4)
    assert room.by_model()["m"] == 4
    mine[2].place.exception()


async def test_of_a_full_queue_a_heavier_tenant_may_have_more() -> None:
    room = entered(*(waiting(f"a{n}", "a", weight=3) for n in range(3)), waiting("b0", "b"))
    assert refused(room, waiting("b1", "b"), 4)
    assert refused(room, waiting("a3", "a", weight=3), 4)


async def test_an_urgent_request_takes_the_space_of_its_tenants_last() -> None:
    room = entered(waiting("a0", "a"), late := waiting("a1", "a", priority=LEVELS), waiting("b0", "b"))
    assert not refused(room, waiting("a2", "a", since_s=1.0, priority=1), 3)
    assert isinstance(late.place.exception(), NoCapacity)


async def test_whose_start_is_under_way_is_not_crowded_out() -> None:
    mine = [waiting(f"a{n}", "a") for n in range(3)]
    room = entered(*mine)
    for one in mine:
        room.join(one, R)
    assert refused(room, waiting("b0", "b"), 3)
    assert not any(one.place.done() for one in mine)


async def test_a_stream_that_broke_comes_before_its_tenants_new_ones_and_costs_nothing_more() -> None:
    room = entered(
        *(waiting(f"a{n}", "a", priority=1) for n in range(2)),
        waiting("a-broke", "a", since_s=5.0, broke_on=R),
        waiting("b0", "b", since_s=9.0),
    )
    assert placed(room, 4) == ["a-broke", "a0", "b0", "a1"]


async def test_a_stream_that_broke_finds_space_in_a_full_queue_and_keeps_it() -> None:
    broke = waiting("a-broke", "a", since_s=9.0, broke_on=R)
    room = entered(fresh := waiting("a0", "a"))
    assert not refused(room, broke, 1)
    assert not refused(room, waiting("b0", "b"), 3)
    assert refused(room, waiting("a1", "a"), 3)
    assert not broke.place.done()
    assert not fresh.place.done()


async def test_a_full_queue_of_one_model_is_no_matter_to_another() -> None:
    room = entered(waiting("a0", "a"))
    assert not refused(room, waiting("b0", "b", of="n"), 1)


@dataclass
class Crowd:
    """Tenants that come and ask as they like, one place a second."""

    room: WaitingRoom = field(default_factory=WaitingRoom)
    now_s: float = 0.0
    weights: dict[str, int] = field(default_factory=dict)

    def ask(self, tenant: str, priority: int) -> Waiting:
        one = waiting("s", tenant, weight=self.weights[tenant], priority=priority, since_s=self.now_s)
        self.room.enter(one)
        return one


ASKING = st.lists(
    st.lists(st.tuples(st.sampled_from("bcd"), st.integers(0, LEVELS)), max_size=4), min_size=1, max_size=60
)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.fixed_dictionaries({tenant: st.integers(1, 5) for tenant in "abcd"}),
    asking=ASKING,
    priority=st.integers(0, LEVELS),
)
async def test_nobody_starves_whatever_others_ask(
    weights: dict[str, int], asking: list[list[tuple[str, int]]], priority: int
) -> None:
    """One request of a, and others that ask more than there are places: it comes within SFQ's bound."""
    crowd = Crowd(weights=weights)
    patient = crowd.ask("a", priority)
    bound = sum(weights[other] / weights["a"] + 1 for other in "bcd")
    for second in range(200):
        for tenant, urgency in asking[second % len(asking)]:
            crowd.ask(tenant, urgency)
        if place_next(crowd.room) is patient:
            assert second <= bound
            return
        crowd.now_s += 1.0
    raise AssertionError("it starved")
