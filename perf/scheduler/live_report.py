"""A run of the live comparison for people: a table in Markdown, from the raw rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from perf.formulas import median_of
from perf.results import Round, Run

COLUMNS = {
    "mean, s": "mean_s",
    "p50, s": "p50_s",
    "p99, s": "p99_s",
    "p99 by receipts, s": "gateway_p99_s",
    "timeouts": "timeouts",
    "failures": "failures",
    "requests": "requests",
    "warm": "warm_starts",
    "from DRAM": "dram_starts",
    "from SSD": "ssd_starts",
}


def documents(run: Run) -> Mapping[str, str]:
    return {".md": markdown(run)}


def markdown(run: Run) -> str:
    """Medians over the valid rounds."""
    rounds = run.valid_rounds
    head = f"{run.started_at}, {run.hardware_class}, {len(rounds)} rounds, seed {run.seed}, at {run.commit}"
    return "\n\n".join([head, *_sections(rounds)]) + "\n"


def _sections(rounds: Sequence[Round]) -> Iterator[str]:
    rows = sorted({row for round_ in rounds for row in round_.measurements})
    policies = sorted({row.partition("@")[0] for row in rows})
    capacities = ((policy, _capacity(rounds, rows, policy)) for policy in policies)
    yield "**Capacity, requests/s**: " + ", ".join(f"{policy} {per_s}" for policy, per_s in capacities)
    for load in sorted({row.partition("@")[2] for row in rows}, key=float):
        of_load = [row for row in rows if row.partition("@")[2] == load]
        rate = _shown(median_of(rounds, of_load[0], "rate_per_s"))
        yield f"**At {load} of the slowest policy's capacity, {rate} requests/s: from the request to the first token**"
        yield _table(rounds, of_load)


def _capacity(rounds: Sequence[Round], rows: Sequence[str], policy: str) -> str:
    row = next(row for row in rows if row.partition("@")[0] == policy)
    return _shown(median_of(rounds, row, "capacity_per_s"))


def _table(rounds: Sequence[Round], rows: Sequence[str]) -> str:
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        cells = [_shown(median_of(rounds, row, metric)) for metric in COLUMNS.values()]
        lines.append(f"| {' | '.join([row.partition('@')[0], *cells])} |")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
