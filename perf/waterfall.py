"""Where each millisecond of a start goes, as SVG: a receipt's spans as bars in time, dark where it was waited for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perf.plot import FAINT, FOOT, HEAD, INK, OURS, WIDTH, text
from perf.results import Run

LABELS, RIGHT, ROW, BAR = 170, 90, 20, 12
SHOWN_FROM_S = 0.0005
Receipt = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One row's start, as its receipt tells it."""

    title: str
    receipt: Receipt

    @property
    def spans(self) -> list[Mapping[str, Any]]:
        """Those that can be seen, by their beginning."""
        shown = [span for span in self.receipt["spans"] if span["duration_s"] >= SHOWN_FROM_S]
        return sorted(shown, key=lambda span: (span["start_s"], -span["duration_s"]))

    @property
    def height(self) -> int:
        return FOOT + ROW * len(self.spans) + FOOT // 2


def typical_starts(run: Run, titles: Mapping[str, str]) -> list[Start]:
    """Of each row the round with the median time to the first token, in the titles' order."""
    starts = []
    for row, title in titles.items():
        measured = [round_.measurements[row] for round_ in run.valid_rounds if row in round_.measurements]
        ordered = sorted(measured, key=lambda one: one.figures["first_token_s"])
        if ordered and "receipt" in (typical := ordered[(len(ordered) - 1) // 2]).details:
            starts.append(Start(title=title, receipt=typical.details["receipt"]))
    return starts


def svg(title: str, subtitle: str, starts: Sequence[Start]) -> str:
    """Starts below each other, each on a scale of its own from the request to the first token."""
    height = HEAD + sum(start.height for start in starts)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        text(16, 28, title, size=18, weight="bold"),
        text(16, 48, subtitle),
    ]
    top = HEAD
    for start in starts:
        lines += _start(start, top)
        top += start.height
    return "\n".join([*lines, "</svg>"]) + "\n"


def _start(start: Start, top: int) -> Iterator[str]:
    total_s = start.receipt["actual_s"]
    yield text(16, top + 20, f"{start.title}: {total_s * 1e3:.0f} ms", weight="bold")
    for number, span in enumerate(start.spans):
        y = top + FOOT + ROW * number
        waited = [segment for segment in start.receipt["critical_path"] if segment["name"] == span["name"]]
        yield text(LABELS - 8, y + BAR, span["name"], anchor="end")
        yield _bar(span, total_s, y, FAINT)
        yield from (_bar(segment, total_s, y, OURS) for segment in waited)
        waited_ms = sum(segment["duration_s"] for segment in waited) * 1e3
        label = f"{waited_ms:.0f} ms" if waited_ms >= 1 else ""
        yield text(_x(span["end_s"], total_s) + 6, y + BAR, label, weight="bold")
    bottom = top + FOOT + ROW * len(start.spans)
    for at_s in (0.0, total_s):
        x = _x(at_s, total_s)
        yield f'<line x1="{x:.1f}" y1="{top + FOOT - 4}" x2="{x:.1f}" y2="{bottom}" stroke="{INK}"/>'


def _bar(stretch: Mapping[str, Any], total_s: float, y: float, colour: str) -> str:
    start, end = (_x(stretch[name], total_s) for name in ("start_s", "end_s"))
    return f'<rect x="{start:.1f}" y="{y}" width="{max(0.5, end - start):.1f}" height="{BAR}" fill="{colour}"/>'


def _x(at_s: float, total_s: float) -> float:
    share = min(1.0, max(0.0, at_s / total_s))
    return LABELS + share * (WIDTH - LABELS - RIGHT)
