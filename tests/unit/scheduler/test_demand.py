"""Idle times, and what they say of the next request."""

from __future__ import annotations

import json
import random

import pytest

from serverless_triton.scheduler.demand import LEAST_SEEN, LONGEST_S, SHORTEST_WINDOW_S, Demand, IdleTimes


def times(*idle_s: float) -> IdleTimes:
    histogram = IdleTimes()
    for one in idle_s:
        histogram.add(one)
    return histogram


def test_a_regular_model_may_go_until_shortly_before_it_is_asked_for_again() -> None:
    windows = times(*[600.0] * 20).windows()
    assert windows is not None
    assert 480.0 < windows.away_s < 600.0 < windows.until_s < 750.0


def test_the_windows_hold_all_but_the_rarest_idle_times() -> None:
    seeded = random.Random(7)
    idle_s = [seeded.uniform(100.0, 200.0) for _ in range(500)]
    windows = times(*idle_s).windows()
    assert windows is not None
    within = [one for one in idle_s if windows.away_s <= one <= windows.until_s]
    assert len(within) >= 0.97 * len(idle_s)


def test_a_model_that_soon_comes_back_stays() -> None:
    windows = times(*[SHORTEST_WINDOW_S - 1.0] * 20).windows()
    assert windows is not None
    assert windows.away_s == 0.0


def test_pauses_within_a_burst_do_not_say_that_it_is_over() -> None:
    windows = times(*[0.1] * 500).windows()
    assert windows is not None
    assert (windows.away_s, windows.until_s) == (0.0, SHORTEST_WINDOW_S)


def test_few_idle_times_say_nothing() -> None:
    assert times(*[60.0] * (LEAST_SEEN - 1)).windows() is None


def test_idle_times_that_are_all_over_the_place_say_nothing() -> None:
    spread = [0.1 * 1.0507**n for n in range(239) for _ in range(2)]
    assert times(*spread).windows() is None


def test_a_model_that_mostly_sleeps_longer_than_the_histogram_reaches_says_nothing() -> None:
    assert times(*[60.0] * LEAST_SEEN, *[LONGEST_S] * (LEAST_SEEN + 1)).windows() is None


def test_new_habits_replace_old_ones() -> None:
    windows = times(*[3600.0] * 900, *[SHORTEST_WINDOW_S * 4] * 60_000).windows()
    assert windows is not None
    assert windows.until_s < 3600.0


@pytest.mark.parametrize(("idle_s", "expected"), [(0.0, 0.0), (55.0, 1.0), (100.0, 0.0)])
def test_the_chance_of_a_request_follows_the_histogram(idle_s: float, expected: float) -> None:
    assert times(*[60.0] * 20).chance(idle_s, 10.0) == expected


def test_idle_is_from_the_end_of_the_last_stream_to_the_next() -> None:
    demand = Demand()
    for turn in range(20):
        demand.came("m", turn * 200.0)
        demand.came("m", turn * 200.0 + 1.0)
        demand.went("m", turn * 200.0 + 2.0)
        assert demand.idle_since_s("m") is None
        demand.went("m", turn * 200.0 + 40.0)
    windows = demand.windows("m")
    assert windows is not None
    assert 120.0 < windows.away_s < 160.0
    assert demand.idle_since_s("m") == 3840.0


def test_a_stream_that_resumes_ends_no_idle_time() -> None:
    demand = Demand()
    for turn in range(20):
        demand.came("m", float(turn), resumes=turn > 0)
        demand.went("m", float(turn))
    assert demand.windows("m") is None


def test_what_was_learned_survives_a_restart_and_whose_clock_it_was_does_not() -> None:
    demand = Demand()
    for turn in range(20):
        demand.came("m", turn * 60.0)
        demand.went("m", turn * 60.0)
    again = Demand()
    again.from_json(json.loads(json.dumps(demand.to_json())))
    assert again.windows("m") == demand.windows("m") is not None
    assert again.idle_since_s("m") is None


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"m": {"bins": [[1, 2.0]]}},
        {"m": {"bins": [[240, 1.0]], "beyond": 0.0}},
        {"m": {"bins": [[1, -1.0]], "beyond": 0.0}},
        {"m": {"bins": 3, "beyond": 0.0}},
    ],
)
def test_idle_times_that_are_none_are_not_taken_over(value: object) -> None:
    demand = Demand()
    with pytest.raises((ValueError, TypeError)):
        demand.from_json({"good": {"bins": [[1, 2.0]], "beyond": 0.0}, **value} if isinstance(value, dict) else value)
    assert list(demand) == []
