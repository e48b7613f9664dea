"""A run of the engine benchmark for people: tables in Markdown and a plot, both from the raw rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

from perf import plot
from perf.engine.rivals import BATCHES, DTYPES, ROWS, Row
from perf.formulas import median_of
from perf.plot import Bar, Panel
from perf.results import Round, Run, values_of


def documents(run: Run) -> Mapping[str, str]:
    return {".md": markdown(run), ".svg": picture(run)}


def rows_of(rounds: Sequence[Round], dtype: str) -> list[Row]:
    """Those that were measured."""
    names = {name for round_ in rounds for name in round_.measurements}
    return [row for row in ROWS if row.dtype == dtype and row.name in names]


def batches_of(rounds: Sequence[Round]) -> list[int]:
    """Those that were measured."""
    names = {row.name for row in ROWS}
    return [size for size in BATCHES if any(values_of(rounds, name, f"batch{size}_itl_s") for name in names)]


def markdown(run: Run) -> str:
    """Medians over the valid rounds, with the least and the most where speed is compared."""
    rounds = run.valid_rounds
    head = f"{run.started_at}, {run.hardware_class}, {len(rounds)} rounds, seed {run.seed}, at {run.commit}"
    sections = [text for dtype in DTYPES if rows_of(rounds, dtype) for text in _sections(rounds, dtype)]
    return "\n\n".join([head, *sections, *_recompute_notes(rounds)]) + "\n"


def _sections(rounds: Sequence[Round], dtype: str) -> Iterator[str]:
    rows, batches = rows_of(rounds, dtype), batches_of(rounds)
    yield f"**{dtype}: tokens a second by batch, prompts included (least – most)**"
    yield _table(rows, [f"batch {size}" for size in batches], lambda row: [_speed(rounds, row, n) for n in batches])
    yield f"**{dtype}: first token / between tokens (99th percentile), ms, by batch; a prompt of 512 tokens, ms**"
    columns = [*(f"batch {size}" for size in batches), "512 tokens"]
    yield _table(rows, columns, lambda row: [*(_latency(rounds, row, n) for n in batches), _prefill(rounds, row)])
    yield _agreement(rounds, rows)


def _table(rows: Sequence[Row], columns: Sequence[str], cells: Callable[[Row], Sequence[str]]) -> str:
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    titles = {row: f"**{row.title}**" if row.ours else row.title for row in rows}
    return "\n".join([*lines, *(f"| {' | '.join([titles[row], *cells(row)])} |" for row in rows)])


def _speed(rounds: Sequence[Round], row: Row, batch: int) -> str:
    values = values_of(rounds, row.name, f"batch{batch}_tokens_per_s")
    return f"{median(values):.0f} ({min(values):.0f} – {max(values):.0f})" if values else ""


def _latency(rounds: Sequence[Round], row: Row, batch: int) -> str:
    first, between, slowest = (
        _ms(rounds, row, f"batch{batch}_{metric}") for metric in ("ttft_s", "itl_s", "itl_p99_s")
    )
    return f"{first} / {between} ({slowest})"


def _prefill(rounds: Sequence[Round], row: Row) -> str:
    return _ms(rounds, row, "prefill_s")


def _ms(rounds: Sequence[Round], row: Row, metric: str) -> str:
    value_s = median_of(rounds, row.name, metric)
    return "–" if value_s is None else f"{value_s * 1e3:.3g}" if value_s < 0.1 else f"{value_s * 1e3:.0f}"


def _agreement(rounds: Sequence[Round], rows: Sequence[Row]) -> str:
    """How many answers of the largest batch were the same tokens whoever gave them."""
    same = total = 0
    for round_ in rounds:
        measured = [round_.measurements[row.name] for row in rows if row.name in round_.measurements]
        for answers in zip(*(measurement.details["answers"] for measurement in measured), strict=True):
            same, total = same + (len(set(answers)) == 1), total + 1
    return f"{same} of {total} answers of the largest batch were the same tokens, whoever gave them."


def _recompute_notes(rounds: Sequence[Round]) -> Iterator[str]:
    for row in ROWS:
        decoded_s, recomputed_s = (median_of(rounds, row.name, f"{how}_token_s") for how in ("decoded", "recomputed"))
        if decoded_s and recomputed_s:
            yield (
                f"{row.title}, {row.dtype}, a sequence of 512 tokens: {decoded_s * 1e3:.1f} ms a token decoded alone, "
                f"{recomputed_s * 1e3:.2f} ms a token recomputed, {decoded_s / recomputed_s:.0f} times faster."
            )


def picture(run: Run) -> str:
    """For each dtype: tokens a second by batch, and a prompt of 512 tokens."""
    rounds = run.valid_rounds
    panels = [panel for dtype in DTYPES for panel in (_speed_panel(rounds, dtype), _prefill_panel(rounds, dtype))]
    subtitle = f"SmolLM2-135M, greedy; medians, least and most of {len(rounds)} rounds; {run.hardware_class}"
    return plot.svg("Generating tokens", subtitle, panels)


def _speed_panel(rounds: Sequence[Round], dtype: str) -> Panel:
    bars = [
        _bar(f"batch {size}: {row.title}", row, values_of(rounds, row.name, f"batch{size}_tokens_per_s"))
        for size in batches_of(rounds)
        for row in rows_of(rounds, dtype)
    ]
    return Panel(title=f"{dtype}: tokens a second, prompts included", bars=tuple(bars))


def _prefill_panel(rounds: Sequence[Round], dtype: str) -> Panel:
    bars = [_bar(row.title, row, _prefills_ms(rounds, row)) for row in rows_of(rounds, dtype)]
    return Panel(title=f"{dtype}: a prompt of 512 tokens until its first token, ms", bars=tuple(bars))


def _prefills_ms(rounds: Sequence[Round], row: Row) -> list[float]:
    return [value_s * 1e3 for value_s in values_of(rounds, row.name, "prefill_s")]


def _bar(title: str, row: Row, values: Sequence[float]) -> Bar:
    return Bar(title=title, values=tuple(values), highlighted=row.ours)
