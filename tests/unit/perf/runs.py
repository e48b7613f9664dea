"""Runs made by hand."""

from collections.abc import Mapping
from typing import Any

from perf.results import Measurement, Round, Run


def round_of(number: int, invalid: str | None = None, **first_token_s: float) -> Round:
    """One figure for each rival."""
    measurements = {name: Measurement(figures={"first_token_s": value}) for name, value in first_token_s.items()}
    return Round(number=number, order=tuple(first_token_s), measurements=measurements, invalid=invalid)


def run_of(*rounds: Round, **changes: Any) -> Run:
    hardware: Mapping[str, Any] = {"class": changes.pop("hardware_class", "2 cores")}
    fields: dict[str, Any] = {
        "benchmark": "start",
        "started_at": "2026-01-02T03:04:05+00:00",
        "commit": "c0ffee",
        "command": "python -m perf.start",
        "seed": 1,
        "hardware": hardware,
        "versions": {"torch": "2.13.0"},
        "rounds": rounds,
    }
    return Run(**{**fields, **changes})


def start_run(day: int, *, stock_s: float, cold_s: float = 1.0, hardware_class: str = "2 cores") -> Run:
    rounds = [round_of(n, stock=stock_s, stock_no_auto_complete=stock_s, cold_dram=cold_s) for n in range(3)]
    return run_of(*rounds, started_at=f"2026-01-{day:02}T00:00:00+00:00", hardware_class=hardware_class)
