"""Claims follow from raw rounds, hold or fall short by the last three recorded runs, and stand in the README so."""

from dataclasses import replace
from pathlib import Path

import pytest

from perf import claims_report
from perf.claims import CLAIMS, judge, recorded_runs, verdicts
from perf.claims_report import BEGIN, END, MissingMarkers, describe, markdown_table, with_table
from perf.formulas import CappedShare
from tests.unit.perf.runs import round_of, run_of, start_run

README = Path(__file__).parents[3] / "README.md"
COLD = CLAIMS[:1]


def test_a_claim_is_the_ratio_of_medians():
    run = run_of(*(round_of(n, stock=s, cold_dram=0.5) for n, s in enumerate((4.0, 6.0, 50.0))))
    (claim,) = judge(run)
    assert claim == {"id": "start.cold_vs_stock", "value": 12.0, "goal": 20.0, "holds": False}


def test_a_run_without_both_sides_claims_nothing():
    assert judge(run_of(round_of(0, stock=4.0))) == []
    assert judge(run_of(round_of(0, invalid="from ssd", stock=4.0, cold_dram=0.1))) == []


def test_the_last_three_runs_count():
    runs = [start_run(day, stock_s=s) for day, s in ((5, 30.0), (1, 1.0), (2, 20.0), (4, 9.0), (3, 2.0))]
    (verdict,) = verdicts(runs, COLD)
    assert verdict.values == (2.0, 9.0, 30.0)
    assert verdict.value == 9.0
    assert not verdict.holds


def test_hardware_classes_do_not_mix():
    runs = [start_run(1, stock_s=20.0), start_run(2, stock_s=5.0, hardware_class="1 core")]
    assert [(v.hardware_class, v.holds) for v in verdicts(runs, COLD)] == [("1 core", False), ("2 cores", True)]


def test_a_claim_without_recorded_run_does_not_hold():
    (verdict,) = verdicts([], COLD)
    assert not verdict.holds
    assert "no recorded run" in describe(verdict)


def test_an_upper_bound_holds_below_it():
    bound = replace(CLAIMS[0], comparison="≤")
    assert bound.holds(2.0, 2.0)
    assert not bound.holds(2.1, 2.0)


def test_a_goal_that_the_machine_bounds_follows_from_each_run():
    goal = CappedShare(cap=10.0, share=0.5, metric="first_token_s", of=("ceiling",), to="stock")
    claim = replace(CLAIMS[0], goal=goal)
    rounds = [round_of(0, stock=2.0, cold_dram=1.0, ceiling=ceiling) for ceiling in (8.0, 80.0)]
    runs = [run_of(round_, started_at=f"2026-01-0{day}") for day, round_ in enumerate(rounds, start=1)]
    assert [verdict.goal for run in runs for verdict in verdicts([run], (claim,))] == [2.0, 10.0]
    (verdict,) = verdicts(runs, (claim,))
    assert (verdict.value, verdict.goal, verdict.holds) == (2.0, 6.0, False)


@pytest.mark.parametrize(("stock_s", "status"), [(20.0, 0), (5.0, 1)])
def test_the_command_fails_where_a_claim_falls_short(monkeypatch: pytest.MonkeyPatch, stock_s: float, status: int):
    monkeypatch.setattr(claims_report, "recorded_runs", lambda: [start_run(1, stock_s=stock_s)])
    monkeypatch.setattr(claims_report, "verdicts", lambda runs: verdicts(runs, COLD))
    assert claims_report.main([]) == status


def test_the_command_fails_without_recorded_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(claims_report, "recorded_runs", list)
    assert claims_report.main([]) == 1


def test_the_table_replaces_what_stood_between_the_markers():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    table = markdown_table(verdicts([start_run(1, stock_s=24.0)], COLD))
    assert with_table(text, table) == f"before\n{BEGIN}\n{table}\n{END}\nafter\n"
    assert "| 24 | ≥ 20 | 1 | 2 cores |" in table


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}"])
def test_a_file_without_markers_is_refused(text: str):
    with pytest.raises(MissingMarkers):
        with_table(text, "table")


def test_the_readmes_table_is_current():
    text = README.read_text()
    if BEGIN not in text:
        pytest.skip("the README has no table of claims")
    assert with_table(text, markdown_table(verdicts(recorded_runs()))) == text, (
        "run: python -m perf claims --update README.md"
    )
