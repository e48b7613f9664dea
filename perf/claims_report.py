"""Verdicts for people: lines for a terminal, the README's table, and the command `python -m perf claims`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from perf.claims import Verdict, recorded_runs, verdicts
from perf.results import UnreadableRun

BEGIN, END = "<!-- claims -->", "<!-- /claims -->"


class MissingMarkers(Exception):
    """A file has no place for the table."""


def describe(verdict: Verdict) -> str:
    """Two lines for a terminal."""
    claim = verdict.claim
    value = _number(verdict.value)
    mark = "no run" if verdict.value is None else "holds" if verdict.holds else "FAILS"
    commits = ", ".join(commit[:10] for commit in verdict.commits)
    runs = f"n = {len(verdict.values)} ({', '.join(map(_number, verdict.values))}) at {commits}; "
    return (
        f"{mark:<6} {claim.id}: {value}, goal {claim.comparison} {_number(verdict.goal)}\n"
        f"       {runs if verdict.values else ''}{verdict.hardware_class}"
    )


def _number(value: float | None) -> str:
    """Three digits that count; a plain number where they are all before the point."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def markdown_table(found: Sequence[Verdict]) -> str:
    lines = ["| claim | measured | goal | runs | on |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(_markdown_row(verdict) for verdict in found)])


def _markdown_row(verdict: Verdict) -> str:
    claim = verdict.claim
    value = "not recorded yet" if verdict.value is None else _number(verdict.value)
    shortfall = "" if verdict.holds or verdict.value is None else " (falls short)"
    cells = (
        f"`{claim.id}`: {claim.says}",
        f"{value}{shortfall}",
        f"{claim.comparison} {_number(verdict.goal)}",
        str(len(verdict.values)),
        verdict.hardware_class,
    )
    return f"| {' | '.join(cells)} |"


def with_table(text: str, table: str) -> str:
    """The text with what stands between the markers replaced. Raises MissingMarkers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise MissingMarkers(f"no {BEGIN} … {END} to put the table between; add both lines where it should stand")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 only if every claim holds."""
    parser = argparse.ArgumentParser(
        prog="python -m perf claims", description="What is promised, and whether it is so."
    )
    parser.add_argument("--markdown", action="store_true", help="print the README's table")
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table between the markers in FILE")
    options = parser.parse_args(arguments)
    try:
        found = verdicts(recorded_runs())
        if options.update:
            update(options.update, found)
    except (OSError, MissingMarkers, UnreadableRun) as error:
        print(error, file=sys.stderr)
        return 2
    print(markdown_table(found) if options.markdown else "\n".join(describe(verdict) for verdict in found))
    return 0 if all(verdict.holds for verdict in found) else 1


def update(file: Path, found: Sequence[Verdict]) -> None:
    """Raises MissingMarkers, OSError."""
    try:
        file.write_text(with_table(file.read_text(), markdown_table(found)))
    except MissingMarkers as error:
        raise MissingMarkers(f"{file}: {error}") from error
