"""Receipts become a picture of where their time went."""

from perf.results import Measurement, Round
from perf.waterfall import Start, svg, typical_starts
from tests.unit.perf.runs import run_of

RECEIPT = {
    "actual_s": 0.2,
    "spans": [
        {"name": "triton.load", "start_s": 0.01, "end_s": 0.11, "duration_s": 0.1},
        {"name": "store.load", "start_s": 0.01, "end_s": 0.05, "duration_s": 0.04},
        {"name": "schedule", "start_s": 0.0, "end_s": 0.0001, "duration_s": 0.0001},
    ],
    "critical_path": [{"name": "triton.load", "start_s": 0.01, "end_s": 0.11, "duration_s": 0.1}],
}


def round_with(number: int, first_token_s: float) -> Round:
    receipt = {**RECEIPT, "actual_s": first_token_s}
    measured = Measurement(figures={"first_token_s": first_token_s}, details={"receipt": receipt})
    return Round(number=number, order=("cold",), measurements={"cold": measured})


def test_the_typical_start_is_the_one_with_the_median_time():
    run = run_of(*(round_with(n, s) for n, s in enumerate((0.9, 0.2, 0.3))))
    (start,) = typical_starts(run, {"absent": "Absent", "cold": "Cold"})
    assert (start.title, start.receipt["actual_s"]) == ("Cold", 0.3)


def test_every_span_that_can_be_seen_is_a_row_and_says_how_much_of_it_was_waited_for():
    start = Start(title="Cold", receipt=RECEIPT)
    assert [span["name"] for span in start.spans] == ["triton.load", "store.load"]
    picture = svg("Title", "subtitle", [start])
    assert picture.count("<rect") == 1 + 2 + 1  # the ground, two spans, one of them waited for
    assert "Cold: 200 ms" in picture
    assert ">100 ms<" in picture


def test_what_was_waited_for_lies_where_its_span_is():
    picture = svg("Title", "subtitle", [Start(title="Cold", receipt=RECEIPT)])
    bars = [line for line in picture.splitlines() if line.startswith("<rect x")]
    span, waited = bars[0], bars[1]
    assert span.partition("fill")[0] == waited.partition("fill")[0]
    assert span != waited
