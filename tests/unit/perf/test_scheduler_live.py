"""The live comparison's workload, figures and claim, without a cluster."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev

import pytest

from perf.claims import CLAIMS, judge
from perf.results import Measurement, Round
from perf.scheduler import live_report
from perf.scheduler.clients import TIMED_OUT, Outcome, Task, message_of
from perf.scheduler.live import REAL, figures_of, finished_per_s, parse
from perf.scheduler.live_rows import LOADS, OURS, RIVALS, row_of
from perf.scheduler.traffic import FUNCTIONS_FILE, REQUESTS_FILE, Trace, read_trace, schedule, synthetic_trace
from perf.workloads import BadWorkload
from serverless_triton.scheduler.rivals import POLICIES
from tests.unit.perf.runs import run_of

MODELS = tuple(f"m{number}" for number in range(8))


def requests_of(trace: Trace, seed: str = "1", rate_per_s: float = 5.0):
    return schedule(trace, MODELS, seed=seed, seconds=40.0, rate_per_s=rate_per_s, most_tokens=100)


def answered(startup_s: float, tier: str | None = None, ended_s: float = 1.0) -> Outcome:
    receipt = {"actual_s": startup_s - 0.01, "tier": tier}
    return Outcome(model="m", asked_s=0.0, startup_s=startup_s, ended_s=ended_s, tokens=3, receipt=receipt)


def test_the_rate_fills_the_time():
    requests = requests_of(synthetic_trace())
    assert len(requests) == 200
    assert requests[-1].arrival_s == pytest.approx(40.0)


def test_the_same_seed_gives_the_same_requests_and_another_others():
    trace = synthetic_trace()
    assert requests_of(trace) == requests_of(trace)
    assert requests_of(trace) != requests_of(trace, seed="2")


def test_arrivals_are_bursts():
    arrivals_s = [request.arrival_s for request in requests_of(synthetic_trace())]
    gaps_s = [after - before for before, after in pairwise(arrivals_s)]
    assert pstdev(gaps_s) > 2 * fmean(gaps_s)


def test_no_silence_is_most_of_the_time():
    arrivals_s = [0.0, *(request.arrival_s for request in requests_of(synthetic_trace(), rate_per_s=10.0))]
    assert max(after - before for before, after in pairwise(arrivals_s)) <= 0.16 * 40


def test_models_are_asked_for_by_their_shares_and_answers_are_cut_off():
    trace = Trace(source="t", gaps_s=(1.0,) * 500, output_tokens=(500,) * 500, shares=(0.9, 0.1, *[0.0] * 6))
    requests = requests_of(trace)
    assert {request.model for request in requests} == {"m0", "m1"}
    assert sum(request.model == "m0" for request in requests) > 150
    assert {request.output_tokens for request in requests} == {100}


def test_a_trace_that_is_too_short_says_so():
    trace = Trace(source="t", gaps_s=(1.0,), output_tokens=(1,), shares=(1.0,) * 8)
    with pytest.raises(BadWorkload, match="lower the rate"):
        requests_of(trace)


def test_requests_that_all_come_at_once_are_no_window():
    gaps_s = (0.0,) * 400 + (0.01,) * 3
    trace = Trace(source="t", gaps_s=gaps_s, output_tokens=(1,) * 403, shares=(1.0,) * 8)
    requests = schedule(trace, MODELS, seed="1", seconds=4.0, rate_per_s=75.0, most_tokens=1)
    assert requests[-1].arrival_s == pytest.approx(4.0)
    still = Trace(source="t", gaps_s=(0.0,) * 9, output_tokens=(1,) * 9, shares=(1.0,) * 8)
    with pytest.raises(BadWorkload, match="come at once"):
        schedule(still, MODELS, seed="1", seconds=1.0, rate_per_s=4.0, most_tokens=1)


def test_public_traces_are_read(tmp_path: Path):
    (tmp_path / REQUESTS_FILE).write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.5000000,4,10\n2023-11-16 18:17:04.0000000,3,8\n2023-11-16 18:18:04.2500000,1,0\n"
    )
    (tmp_path / FUNCTIONS_FILE).write_text("app,func,end_timestamp,duration\na,f,1,1\na,g,1,1\na,g,2,1\na,g,3,1\n")
    trace = read_trace(tmp_path)
    assert trace.gaps_s == pytest.approx((0.5, 60.25))
    assert trace.output_tokens == (8, 1)
    assert trace.shares == (0.75, 0.25)


def test_a_folder_without_the_traces_is_an_error(tmp_path: Path):
    with pytest.raises(BadWorkload, match="not the traces"):
        read_trace(tmp_path)


def test_a_request_without_a_token_counts_as_the_timeout():
    late = Outcome(model="m", asked_s=0.0, failure=TIMED_OUT)
    lost = Outcome(model="m", asked_s=0.0, failure="UNAVAILABLE")
    figures = figures_of([answered(1.0, "dram"), answered(3.0), late, lost], timeout_s=8.0)
    assert figures["mean_s"] == pytest.approx(5.0)
    assert figures["gateway_mean_s"] == pytest.approx((0.99 + 2.99 + 8 + 8) / 4)
    assert [figures[name] for name in ("timeouts", "failures", "warm_starts", "dram_starts")] == [1, 1, 1, 1]


def test_capacity_counts_what_was_finished_within_the_time():
    outcomes = [answered(0.1, ended_s=at_s) for at_s in (1.0, 3.0, 4.0, 9.0)]
    outcomes.append(Outcome(model="m", asked_s=0.0, ended_s=3.0, failure=TIMED_OUT))
    assert finished_per_s(outcomes, from_s=2.0, until_s=6.0) == pytest.approx(0.5)


def test_a_task_travels_as_json():
    task = Task(address="a:1", requests=requests_of(synthetic_trace())[:3], timeout_s=4.0, at_a_time=2, seconds=1.0)
    assert Task.from_json(task.to_json()) == task
    assert b"return_receipt" in message_of(task.requests[0])


def run_with(p99_s: dict[str, float]):
    rows = {
        row_of(policy, load): Measurement(figures={"p99_s": value * load, "rate_per_s": load, "capacity_per_s": 9.0})
        for policy, value in p99_s.items()
        for load in LOADS
    }
    return run_of(Round(number=0, order=tuple(rows), measurements=rows), benchmark="scheduler-live")


def test_the_claim_is_against_the_rival_that_is_best_over_all_loads():
    run = run_with({OURS: 2.0, **dict(zip(RIVALS, (9.0, 3.0, 5.0, 7.0), strict=True))})
    (claim,) = (one for one in judge(run) if one["id"] == "scheduler.p99_vs_best_rival")
    assert claim["value"] == pytest.approx(1.5)
    assert claim["holds"]


def test_a_run_without_one_of_the_policies_claims_nothing():
    assert judge(run_with({OURS: 2.0, RIVALS[0]: 9.0})) == []
    assert any(claim.benchmark == "scheduler-live" for claim in CLAIMS)


def test_the_table_has_a_row_a_policy_under_each_load():
    text = live_report.markdown(run_with({OURS: 2.0, RIVALS[0]: 9.0}))
    assert text.count(f"| {OURS} |") == text.count("**At ") == len(LOADS)


def test_policies_and_traces_are_chosen_on_the_command_line(tmp_path: Path):
    benchmark, rest = parse(["--policies", "startup_time,random", "--traces", str(tmp_path), "--rounds", "1"])
    assert (benchmark.policies, benchmark.traces) == (("startup_time", "random"), tmp_path)
    assert rest == ["--rounds", "1"]


def test_the_real_engine_is_a_benchmark_of_its_own_that_no_claim_is_about():
    benchmark, rest = parse(["--real", "--record"])
    assert (benchmark.name, benchmark.fleet) == (REAL.name, REAL.fleet)
    assert rest == ["--record"]
    assert not any(claim.benchmark == REAL.name for claim in CLAIMS)


def test_every_policy_that_a_configuration_may_name_is_compared():
    assert {OURS, *RIVALS} == set(POLICIES)
