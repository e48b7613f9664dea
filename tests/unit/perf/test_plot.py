"""A plot is well-formed, and its lengths are the figures'."""

from xml.etree import ElementTree

import pytest

from perf.plot import LABELS, RIGHT, WIDTH, Bar, Panel, scale_of, svg

SVG = "{http://www.w3.org/2000/svg}"
BARS = (Bar(title="ours <1>", values=(2.0, 1.0, 4.0), highlighted=True), Bar(title="theirs", values=(1.0,)))


def lengths(text: str) -> list[float]:
    """Of the bars; the first rectangle is the background."""
    return [float(rect.attrib["width"]) for rect in ElementTree.fromstring(text).iter(f"{SVG}rect")][1:]


def test_bars_are_as_long_as_their_medians():
    ours, theirs = lengths(svg("title", "subtitle", [Panel(title="panel", bars=BARS)]))
    assert ours == pytest.approx(2 * theirs, abs=0.2)


def test_titles_are_text_and_no_markup():
    texts = [
        text.text for text in ElementTree.fromstring(svg("a & b", "", [Panel(title="p", bars=BARS)])).iter(f"{SVG}text")
    ]
    assert {"a & b", "ours <1>", "theirs"} <= set(texts)


def test_the_line_belongs_to_the_scale():
    scale = scale_of(Panel(title="panel", bars=BARS, line=8.0, line_title="ceiling"))
    assert scale.x(8.0) == WIDTH - RIGHT
    assert scale.x(0.0) == LABELS


def test_a_logarithmic_scale_has_equal_steps_for_equal_ratios():
    bars = tuple(Bar(title="", values=(value,)) for value in (0.01, 0.1, 1.0))
    scale = scale_of(Panel(title="panel", bars=bars, logarithmic=True))
    least, middle, most = (scale.x(bar.values[0]) for bar in bars)
    assert least > LABELS
    assert middle - least == pytest.approx(most - middle)


def test_a_panel_without_bars_is_left_out():
    assert svg("t", "s", [Panel(title="nothing", bars=())]).count("nothing") == 0
