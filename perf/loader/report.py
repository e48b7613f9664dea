"""A run of the loader benchmark for people: a table in Markdown and a plot, both from the raw rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from perf import plot
from perf.formulas import best_of, median_of
from perf.loader.rivals import CEILINGS, PREMAPPED, PREMAPPED_4K, TITLES, is_ours
from perf.plot import Bar, Panel
from perf.results import Round, Run, values_of

# By the beginning of a row's name, in the order of the document.
SECTIONS = {
    "ceiling": "The disk's ceiling",
    "cold": "From disk, until every page was summed",
    "warm": "From memory into a new process, until every page was summed",
    "premapped": "From memory into a process that mapped the arena ahead",
    "arena": "The arena's own start-up: process start until every page of it was touched",
}
COLUMNS = "| | s (least – most) | GB/s | CPU s | peak GB | page cache GB |\n|---|---|---|---|---|---|"
PLOTTED = ("cold", "warm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    name: str
    elapsed_s: tuple[float, ...]
    median_s: float
    bytes_per_s: float
    cpu_s: float
    peak_bytes: float
    page_cache_bytes: float | None


def documents(run: Run) -> Mapping[str, str]:
    return {".md": markdown(run), ".svg": picture(run)}


def rows_of(rounds: Sequence[Round], section: str) -> list[Row]:
    """Fastest first."""
    names = {name for round_ in rounds for name in round_.measurements if name.partition(".")[0] == section}
    return sorted((_row(rounds, name) for name in names), key=lambda row: (row.median_s, row.name))


def _row(rounds: Sequence[Round], name: str) -> Row:
    elapsed_s, bytes_per_s, cpu_s, peak_bytes = (
        median_of(rounds, name, metric) or 0.0 for metric in ("elapsed_s", "bytes_per_s", "cpu_s", "peak_bytes")
    )
    return Row(
        name=name,
        elapsed_s=tuple(values_of(rounds, name, "elapsed_s")),
        median_s=elapsed_s,
        bytes_per_s=bytes_per_s,
        cpu_s=cpu_s,
        peak_bytes=peak_bytes,
        page_cache_bytes=median_of(rounds, name, "page_cache_bytes"),
    )


def markdown(run: Run) -> str:
    """A table for every section, medians over the valid rounds."""
    rounds = run.valid_rounds
    head = f"{run.started_at}, {run.hardware_class}, {len(rounds)} rounds, seed {run.seed}, at {run.commit}"
    return "\n\n".join([head, *_sections(rounds)]) + "\n"


def _sections(rounds: Sequence[Round]) -> Iterator[str]:
    for section, title in SECTIONS.items():
        if rows := rows_of(rounds, section):
            yield f"**{title}**"
            yield "\n".join([COLUMNS, *map(_line, rows)])
        yield from _notes(rounds, section)


def _notes(rounds: Sequence[Round], section: str) -> Iterator[str]:
    if section == "premapped":
        for row in (PREMAPPED, PREMAPPED_4K):
            plain_s = median_of(rounds, row, "plain_sum_s")
            beyond_s = median_of(rounds, row, "beyond_plain_sum_s")
            if plain_s is not None and beyond_s is not None:
                own = f"{_seconds(plain_s)} of it is the sum's own time over plain memory"
                yield f"{TITLES[row]}: {own}, {_seconds(beyond_s)} is not."


def _line(row: Row) -> str:
    title = f"**{TITLES[row.name]}**" if is_ours(row.name) else TITLES[row.name]
    spread = f"{row.median_s:.3f} ({min(row.elapsed_s):.3f} – {max(row.elapsed_s):.3f})"
    cached = "" if row.page_cache_bytes is None else f"{row.page_cache_bytes / 1e9:.2f}"
    cells = (title, spread, f"{row.bytes_per_s / 1e9:.2f}", f"{row.cpu_s:.2f}", f"{row.peak_bytes / 1e9:.2f}", cached)
    return f"| {' | '.join(cells)} |"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.3f} s"


def picture(run: Run) -> str:
    """Two panels: GB/s from disk with the ceiling as a line, seconds from memory."""
    rounds = run.valid_rounds
    ceiling = best_of(rounds, tuple(CEILINGS), "bytes_per_s")
    cold = Panel(
        title="From disk (nothing cached), GB/s",
        bars=tuple(_bar(row, _gigabytes_per_s(rounds, row)) for row in rows_of(rounds, "cold")),
        line=None if ceiling is None else ceiling / 1e9,
        line_title="O_DIRECT ceiling",
    )
    warm = [*rows_of(rounds, "premapped"), *rows_of(rounds, "warm")]
    warm_panel = Panel(
        title="From memory into another process, seconds (logarithmic)",
        bars=tuple(_bar(row, row.elapsed_s) for row in sorted(warm, key=lambda row: row.median_s)),
        logarithmic=True,
    )
    subtitle = f"2.2 GB of bfloat16, summed over every page; medians, least and most of {len(rounds)} rounds; "
    return plot.svg("Loading a checkpoint", subtitle + run.hardware_class, (cold, warm_panel))


def _gigabytes_per_s(rounds: Sequence[Round], row: Row) -> tuple[float, ...]:
    return tuple(value / 1e9 for value in values_of(rounds, row.name, "bytes_per_s"))


def _bar(row: Row, values: Sequence[float]) -> Bar:
    return Bar(title=TITLES[row.name], values=tuple(values), highlighted=is_ours(row.name))
