"""Horizontal bars as SVG, without a plotting library: medians, with the least and the most as a thin line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from statistics import median

WIDTH, LABELS, RIGHT = 980, 440, 90
ROW, BAR, HEAD, FOOT = 24, 14, 62, 34
OURS, THEIRS, INK, FAINT = "#0b6e4f", "#9aa5b1", "#1f2933", "#cbd2d9"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """`values`: one of each round; at least one, all above 0."""

    title: str
    values: tuple[float, ...]
    highlighted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Bars on one scale, which begins at 0 or, if logarithmic, at a power of ten. `line` marks a value across them."""

    title: str
    bars: tuple[Bar, ...]
    line: float | None = None
    line_title: str = ""
    logarithmic: bool = False

    @property
    def height(self) -> int:
        return FOOT + ROW * len(self.bars) + FOOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From values to pixels."""

    least: float
    most: float
    logarithmic: bool

    def x(self, value: float) -> float:
        return LABELS + self._share(value) * (WIDTH - LABELS - RIGHT)

    def _share(self, value: float) -> float:
        if self.logarithmic:
            return log10(value / self.least) / log10(self.most / self.least)
        return (value - self.least) / (self.most - self.least)


def scale_of(panel: Panel) -> Scale:
    values = [value for bar in panel.bars for value in bar.values] + ([panel.line] if panel.line is not None else [])
    if not panel.logarithmic:
        return Scale(least=0.0, most=max(values), logarithmic=False)
    # A decade below the least, so that the shortest bar can be seen.
    return Scale(least=10.0 ** floor(log10(min(values)) - 0.3), most=max(values), logarithmic=True)


def svg(title: str, subtitle: str, panels: Sequence[Panel]) -> str:
    """Panels below each other; those without bars are left out."""
    drawn = [panel for panel in panels if panel.bars]
    height = HEAD + sum(panel.height for panel in drawn)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        text(16, 28, title, size=18, weight="bold"),
        text(16, 48, subtitle),
    ]
    top = HEAD
    for panel in drawn:
        lines += _panel(panel, top)
        top += panel.height
    return "\n".join([*lines, "</svg>"]) + "\n"


def _panel(panel: Panel, top: int) -> Iterator[str]:
    scale = scale_of(panel)
    yield text(16, top + 20, panel.title, weight="bold")
    for number, bar in enumerate(panel.bars):
        yield from _bar(bar, scale, top + FOOT + ROW * number)
    if panel.line is not None:
        x, above, bottom = scale.x(panel.line), top + FOOT - 4, top + FOOT + ROW * len(panel.bars)
        yield f'<line x1="{x:.1f}" y1="{above}" x2="{x:.1f}" y2="{bottom}" stroke="{INK}" stroke-dasharray="4 3"/>'
        yield text(x, bottom + 14, f"{panel.line_title} {panel.line:.3g}", anchor="middle")


def _bar(bar: Bar, scale: Scale, top: int) -> Iterator[str]:
    middle, y = median(bar.values), top + ROW / 2
    end, least, most = (scale.x(value) for value in (middle, min(bar.values), max(bar.values)))
    weight = "bold" if bar.highlighted else "normal"
    yield text(LABELS - 8, y + 4, bar.title, anchor="end", weight=weight)
    colour = OURS if bar.highlighted else THEIRS
    yield f'<rect x="{LABELS}" y="{y - BAR / 2}" width="{end - LABELS:.1f}" height="{BAR}" fill="{colour}"/>'
    yield f'<line x1="{least:.1f}" y1="{y}" x2="{most:.1f}" y2="{y}" stroke="{INK}"/>'
    yield text(max(end, most) + 6, y + 4, f"{middle:.3g}", weight=weight)


def text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{INK}">'
        f"{escape(text)}</text>"
    )
