"""What starts teach: synthetic truths are found, absurd starts do no harm."""

from __future__ import annotations

import json
import math
import random

import pytest

from serverless_triton.scheduler.admission import ServerName, StartState
from serverless_triton.scheduler.calibration import Calibration, ObservedStart
from serverless_triton.scheduler.state.protocol import encode

GB = 1e9
S0 = ServerName("s0")


def start(
    *,
    size_gb: float,
    read_s: float | None,
    rest_s: float,
    tier: str = "ssd",
    state: StartState = "cold",
    model: str = "m",
) -> ObservedStart:
    size = int(size_gb * GB)
    return ObservedStart(server=S0, model=model, state=state, tier=tier, bytes=size, read_s=read_s, rest_s=rest_s)


def taught(seed: int, starts: int, noise: float = 0.05) -> Calibration:
    """By a disk of 2 GB/s whose every read takes 10 ms more, and fixed costs of 0.2 s, twice that for one model."""
    chance, calibration = random.Random(seed), Calibration()
    for number in range(starts):
        size_gb, slow = chance.uniform(0.1, 4.0), number % 2 == 0
        read_s = (0.01 + size_gb / 2.0) * chance.gauss(1.0, noise)
        rest_s = (0.39 if slow else 0.19) * chance.gauss(1.0, noise)
        calibration.observe_start(
            start(size_gb=size_gb, read_s=read_s, rest_s=rest_s, model="slow" if slow else "quick")
        )
    return calibration


def predicted_s(calibration: Calibration, size_gb: float, model: str) -> float:
    there, of = calibration.server(S0), calibration.model(model)
    return size_gb * GB / there.bandwidth["ssd"] + there.fixed_start_s["cold"]["ssd"] + of.fixed_offset_s["cold"]


@pytest.mark.parametrize("seed", range(8))
def test_it_converges_to_the_truth(seed: int) -> None:
    calibration = taught(seed, 80)
    assert calibration.server(S0).bandwidth["ssd"] == pytest.approx(2e9, rel=0.05)
    for size_gb in (0.2, 1.0, 4.0):
        assert predicted_s(calibration, size_gb, "quick") == pytest.approx(0.2 + size_gb / 2, rel=0.08)
        assert predicted_s(calibration, size_gb, "slow") == pytest.approx(0.4 + size_gb / 2, rel=0.08)


@pytest.mark.parametrize("absurd_s", [0.0, 1e6])
def test_one_absurd_start_does_no_harm(absurd_s: float) -> None:
    calibration = taught(1, 80)
    before = predicted_s(calibration, 1.0, "quick")
    calibration.observe_start(start(size_gb=1.0, read_s=absurd_s, rest_s=absurd_s, model="quick"))
    assert predicted_s(calibration, 1.0, "quick") == pytest.approx(before, rel=0.1)


def test_an_absurd_first_start_is_soon_forgotten() -> None:
    calibration = Calibration()
    calibration.observe_start(start(size_gb=1.0, read_s=1e6, rest_s=1e6))
    for _ in range(20):
        calibration.observe_start(start(size_gb=1.0, read_s=0.5, rest_s=0.2))
    assert predicted_s(calibration, 1.0, "m") == pytest.approx(0.7, rel=0.1)


def test_a_disk_that_has_become_slower_is_believed_after_a_few_starts() -> None:
    calibration = taught(1, 80)
    for size_gb in (1.0, 3.0, 2.0, 1.5, 2.5, 1.0):
        calibration.observe_start(start(size_gb=size_gb, read_s=size_gb / 0.2, rest_s=0.2, model="quick"))
    assert calibration.server(S0).bandwidth["ssd"] == pytest.approx(0.2e9, rel=0.15)


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -1.0])
def test_what_is_no_duration_teaches_nothing(nonsense: float) -> None:
    calibration = taught(1, 10)
    before = calibration.to_json()
    calibration.observe_start(start(size_gb=1.0, read_s=nonsense, rest_s=nonsense))
    assert calibration.to_json()["servers"] == before["servers"]


@pytest.mark.parametrize("seed", range(8))
def test_no_figure_is_ever_negative_whatever_is_observed(seed: int) -> None:
    chance, calibration = random.Random(seed), Calibration()
    for _ in range(100):
        read_s, rest_s = 10 ** chance.uniform(-6, 3), 10 ** chance.uniform(-6, 3)
        tier, state = chance.choice(["dram", "ssd", "remote"]), chance.choice([*("cold", "parked")])
        calibration.observe_start(
            start(size_gb=chance.uniform(0, 9), read_s=read_s, rest_s=rest_s, tier=tier, state=state)  # type: ignore[arg-type]
        )
        calibration.observe_parking(S0, rest_s)
        calibration.observe_migration("m", tokens=chance.randrange(9000), seconds=rest_s)
        figures, of = calibration.server(S0), calibration.model("m")
        fixed = [*figures.fixed_start_s["cold"].values(), *figures.fixed_start_s["parked"].values()]
        assert min(figures.bandwidth.values()) > 0.0
        assert min([*fixed, figures.park_s, of.migration_s_per_token, of.migration_fixed_s]) >= 0.0
        assert all(map(math.isfinite, [*figures.bandwidth.values(), *figures.bandwidth_error.values(), *fixed]))


def test_errors_shrink_as_starts_agree() -> None:
    before, after = Calibration().server(S0), taught(1, 80, noise=0.02).server(S0)
    assert after.bandwidth_error["ssd"] < before.bandwidth_error["ssd"] / 4
    assert after.fixed_error_s["cold"]["ssd"] < before.fixed_error_s["cold"]["ssd"]


def test_what_a_move_costs_is_learned_by_token() -> None:
    chance, calibration = random.Random(1), Calibration()
    for _ in range(60):
        tokens = chance.randrange(100, 4000)
        calibration.observe_migration("m", tokens=tokens, seconds=(0.3 + 0.0002 * tokens) * chance.gauss(1.0, 0.03))
    assert calibration.model("m").migration_s_per_token == pytest.approx(0.0002, rel=0.1)
    assert calibration.model("m").migration_fixed_s == pytest.approx(0.3, rel=0.1)
    assert calibration.model("other").migration_s_per_token != calibration.model("m").migration_s_per_token


def test_what_the_store_measured_is_of_use_until_a_start_says_more() -> None:
    calibration = Calibration()
    calibration.suppose_bandwidth(S0, "ssd", 3e9)
    assert calibration.server(S0).bandwidth["ssd"] == pytest.approx(3e9)
    calibration.observe_start(start(size_gb=2.0, read_s=1.0, rest_s=0.2))
    learned = calibration.server(S0).bandwidth["ssd"]
    calibration.suppose_bandwidth(S0, "ssd", 9e9)
    assert calibration.server(S0).bandwidth["ssd"] == learned


def test_it_comes_back_from_json() -> None:
    calibration = taught(1, 30)
    calibration.observe_migration("m", tokens=100, seconds=0.3)
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert again.to_json() == calibration.to_json()
    assert again.server(S0) == calibration.server(S0)
    assert again.model("slow") == calibration.model("slow")


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"version": 2, "servers": {}, "models": {}},
        {"version": 1},
        {"version": 1, "servers": {"s0": {}}, "models": {}},
    ],
)
def test_anything_else_is_refused_with_what_to_do(body: object) -> None:
    with pytest.raises(ValueError, match="delete it"):
        Calibration.from_json(body)  # type: ignore[arg-type]


def test_the_tier_of_which_nothing_is_known_teaches_nothing() -> None:
    calibration = Calibration()
    calibration.observe_start(start(size_gb=1.0, read_s=9.0, rest_s=9.0, tier="page_cache"))
    assert calibration.to_json()["servers"] == {}


def test_what_cannot_be_read_leaves_what_is_known_as_it_is() -> None:
    known = Calibration()
    known.observe_parking(S0, 2.0)
    before = known.server(S0)
    with pytest.raises(ValueError, match="calibration"):
        known.take_over({"version": 1, "servers": {"s0": {}}, "models": {}})
    assert known.server(S0) == before


def test_what_is_kept_of_many_servers_and_models_fits_into_one_document() -> None:
    known = Calibration()
    for number in range(2_000):
        known.observe_migration(f"a-model-with-a-name-of-some-length-{number}", tokens=17, seconds=0.123456)
        known.observe_parking(ServerName(f"a-server-with-a-name-{number}"), 0.123456)
    anew = Calibration()
    anew.take_over(json.loads(encode("calibration", known.to_json())))
    newest = ServerName("a-server-with-a-name-1999")
    assert anew.server(newest) == known.server(newest)


def test_after_a_busy_hour_what_starts_take_then_is_soon_forgotten() -> None:
    chance, calibration = random.Random(3), Calibration()
    for seconds in [0.15 * chance.lognormvariate(0.0, 0.5) for _ in range(40)]:
        calibration.observe_start(start(size_gb=0.1, read_s=0.01, rest_s=seconds, tier="dram", state="parked"))
    for _ in range(10):
        calibration.observe_start(start(size_gb=0.1, read_s=0.01, rest_s=0.04, tier="dram", state="parked"))
    known = calibration.server(S0).fixed_start_s["parked"]["dram"] + calibration.model("m").fixed_offset_s["parked"]
    assert known < 0.05


def test_few_slow_starts_among_many_move_what_is_known_but_little() -> None:
    calibration = Calibration()
    for number in range(40):
        slow = number % 5 == 4
        calibration.observe_start(start(size_gb=0.1, read_s=0.01, rest_s=0.2 if slow else 0.04, tier="dram"))
    known = calibration.server(S0).fixed_start_s["cold"]["dram"] + calibration.model("m").fixed_offset_s["cold"]
    assert known < 0.06


@pytest.mark.parametrize("seed", range(6))
def test_a_thousand_reads_of_next_to_nothing_are_not_taken_for_long_ones(seed: int) -> None:
    """Out of DRAM nothing is copied: what noise there is must not swing between the line's slope and its intercept."""
    chance, calibration, worst_s = random.Random(seed), Calibration(), 0.0
    for number in range(1_000):
        size_gb = chance.choice((0.11, 0.27, 0.42))
        likely = chance.random()
        read_s = chance.uniform(2e-4, 1e-3) if likely < 0.5 else chance.uniform(1e-3, 0.01 if likely < 0.93 else 0.04)
        calibration.observe_start(start(size_gb=size_gb, read_s=read_s, rest_s=0.05, tier="dram"))
        if number > 20:
            there = calibration.server(S0)
            worst_s = max(worst_s, 0.42 * GB / there.bandwidth["dram"] + calibration.attach_s(S0, "dram"))
    assert worst_s < 0.2  # five times the longest that was seen
