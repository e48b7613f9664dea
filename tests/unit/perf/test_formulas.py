"""Formulas take medians over rounds, and give nothing where a round lacks what they need."""

import pytest

from perf.formulas import (
    CappedShare,
    Formula,
    GeometricRatioToBest,
    Largest,
    Median,
    MedianRatio,
    PairedOverhead,
    PairedRatioToBest,
    RatioToBest,
    WorstPercentile,
)
from perf.results import Measurement, Round
from tests.unit.perf.runs import round_of

METRIC = "first_token_s"
ROUNDS = [
    round_of(n, a=a, b=b, c=c) for n, (a, b, c) in enumerate(((6.0, 2.0, 3.0), (8.0, 2.0, 4.0), (90.0, 1.0, 5.0)))
]


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        (Median(metric=METRIC, of="a"), 8.0),
        (MedianRatio(metric=METRIC, of="a", to="b"), 4.0),
        (RatioToBest(metric=METRIC, of="a", to=("b", "c")), 2.0),
        (RatioToBest(metric=METRIC, of="a", to=("b", "absent")), 4.0),
        (GeometricRatioToBest(metric=METRIC, of=("b", "b"), to=(("a", "a"), ("c", "a"))), 8**0.5),
        (CappedShare(cap=1.3, share=0.95, metric=METRIC, of=("b", "c"), to="a"), 0.475),
        (CappedShare(cap=0.3, share=0.95, metric=METRIC, of=("b", "c"), to="a"), 0.3),
    ],
)
def test_a_formula_is_about_medians(formula: Formula, value: float):
    assert formula.value(ROUNDS) == pytest.approx(value)


@pytest.mark.parametrize(
    "formula",
    [
        Median(metric=METRIC, of="absent"),
        Largest(metric=METRIC, of="absent"),
        MedianRatio(metric=METRIC, of="a", to="absent"),
        MedianRatio(metric="absent_s", of="a", to="b"),
        RatioToBest(metric=METRIC, of="a", to=("absent",)),
        GeometricRatioToBest(metric=METRIC, of=("a",), to=(("absent",), ("b",))),
        PairedRatioToBest(of=METRIC, to=METRIC, rows=("absent",)),
        PairedRatioToBest(of="absent_s", to=METRIC, rows=("a",)),
        PairedOverhead(row="a", with_it=METRIC, without_it="absent_s"),
        CappedShare(cap=1.3, share=0.95, metric=METRIC, of=("absent",), to="a"),
    ],
)
def test_what_was_not_measured_gives_no_value(formula: Formula):
    assert formula.value(ROUNDS) is None


def listed(number: int, **rows: list[float]) -> Round:
    measured = {row: Measurement(figures={}, details={"errors": errors}) for row, errors in rows.items()}
    return Round(number=number, order=tuple(rows), measurements=measured)


def test_a_percentile_is_of_all_rounds_together_and_the_worst_rows():
    rounds = [listed(0, a=[0.0, 0.1], b=[0.5, 0.5]), listed(1, a=[0.2, 0.9], b=[0.5, 0.5])]
    assert WorstPercentile(detail="errors", of=("a",), percent=50, least=4).value(rounds) == pytest.approx(0.15)
    assert WorstPercentile(detail="errors", of=("a", "b"), percent=50, least=4).value(rounds) == 0.5
    assert WorstPercentile(detail="errors", of=("a", "b"), percent=100, least=4).value(rounds) == 0.9


def test_of_too_few_no_percentile_is_given():
    rounds = [listed(0, a=[0.1, 0.1], b=[0.1])]
    assert WorstPercentile(detail="errors", of=("a", "b"), percent=50, least=2).value(rounds) is None
    assert WorstPercentile(detail="errors", of=("a",), percent=50, least=1).value([]) is None


def paired(number: int, **rows: tuple[float, float]) -> Round:
    """Rows by name, each with our figure and the rival's."""
    figures = {row: Measurement(figures={"ours_s": ours, "s": rival}) for row, (ours, rival) in rows.items()}
    return Round(number=number, order=tuple(rows), measurements=figures)


PAIRED = PairedRatioToBest(of="ours_s", to="s", rows=("slow", "best"))


def test_a_bound_is_for_the_worst_round():
    assert Largest(metric=METRIC, of="a").value(ROUNDS) == 90.0


def test_a_paired_ratio_does_not_see_what_slows_both_of_a_pair():
    assert PAIRED.value([paired(n, best=(0.9 * speed, speed)) for n, speed in enumerate((3.0, 1.0, 2.0))]) == (
        pytest.approx(0.9)
    )


def test_a_paired_ratio_is_that_to_the_fastest_rival():
    rounds = [paired(n, best=(0.9, 1.0), slow=(5.0, 0.5)) for n in range(3)]

    assert PAIRED.value(rounds) == pytest.approx(0.9)


def test_an_overhead_is_what_is_missing_in_speed():
    rounds = [paired(n, best=(1.0, speed)) for n, speed in enumerate((1.04, 1.03, 2.0))]

    assert PairedOverhead(row="best", with_it="ours_s", without_it="s").value(rounds) == pytest.approx(0.04)
