"""A run's file gives back the run, and its summary counts valid rounds only."""

from pathlib import Path

import numpy as np
import pytest

from perf.results import UnreadableRun, percentile, read_run, summarize, to_json, unit_of, write_json
from tests.unit.perf.runs import round_of, run_of


def test_a_run_survives_its_file(tmp_path: Path):
    run = run_of(round_of(0, invalid="stock: too warm"), round_of(0, stock=4.0, cold_dram=0.5))
    write_json(tmp_path / "made" / "on-the-way" / "run.json", to_json(run, []))
    assert read_run(tmp_path / "made" / "on-the-way" / "run.json") == run


def test_the_file_has_the_documented_keys():
    body = to_json(run_of(round_of(0, stock=4.0)), [{"id": "a"}])
    assert list(body) == [
        *("benchmark", "started_at", "commit", "command", "seed", "hardware", "versions", "rounds"),
        *("summary", "claims"),
    ]
    (row,) = body["summary"]
    assert row == {
        "row": "stock",
        "metric": "first_token_s",
        "unit": "s",
        "median": 4.0,
        "p50": 4.0,
        "p99": 4.0,
        "n": 1,
    }


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmark": "start", "rounds": 3}'])
def test_what_is_no_run_is_named(tmp_path: Path, text: str):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UnreadableRun, match=r"run\.json"):
        read_run(tmp_path / "run.json")


def test_invalid_rounds_are_kept_and_count_for_nothing():
    run = run_of(round_of(0, invalid="from ssd", stock=100.0), round_of(0, stock=2.0), round_of(1, stock=4.0))
    (row,) = summarize(run.valid_rounds)
    assert (row.median, row.n) == (3.0, 2)
    assert len(run.rounds) == 3


@pytest.mark.parametrize("percent", [0, 1, 50, 99, 100])
def test_percentiles_are_numpys(percent: int):
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_units_stand_at_the_end_of_names():
    assert [unit_of(name) for name in ("first_token_s", "responses_per_s", "image_bytes", "requests")] == [
        "s",
        "1/s",
        "B",
        "",
    ]


def test_the_stamp_is_a_file_name():
    assert run_of().stamp == "20260102T030405Z"
