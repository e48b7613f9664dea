"""The critical path tiles request to first token, whatever the spans."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest

from serverless_triton.scheduler.admission import Comparison, Exactness, ServerName, Span, StartTerms, StreamId
from serverless_triton.scheduler.receipts import (
    UNEXPLAINED,
    Receipt,
    ReceiptBook,
    critical_path,
    format_table,
    from_json,
    to_json,
)


def span(name, start_s, end_s, parent=None):
    return Span(name=name, start_s=start_s, end_s=end_s, parent=parent)


def receipt(stream="s1", **changes):
    fields = {
        "stream": StreamId(stream),
        "model": "m",
        "server": ServerName("a"),
        "kind": "cold",
        "tier": "dram",
        "bytes": 269_000_000,
        "predicted_s": 0.4,
        "start_s": 100.0,
        "first_token_s": 100.5,
        "spans": (span("triton_load", 100.0, 100.1), span("weights", 100.05, 100.3), span("forward", 100.3, 100.45)),
    }
    return Receipt(**{**fields, **changes})


def names(path):
    return [(segment.name, round(segment.start_s, 6), round(segment.end_s, 6)) for segment in path]


def test_what_ended_last_is_what_was_waited_for():
    side_by_side = [span("triton", 0.0, 3.0), span("weights", 0.5, 5.0), span("forward", 5.0, 6.0)]
    assert names(critical_path(side_by_side, 0.0, 6.0)) == [("triton", 0, 0.5), ("weights", 0.5, 5), ("forward", 5, 6)]


def test_a_shorter_branch_beside_the_longer_one_is_not_on_the_path():
    spans = [
        span("admission", 0.0, 10.0),
        span("agent", 1.0, 6.0, "admission"),
        span("read", 2.0, 5.0, "agent"),
        span("triton", 1.0, 9.5, "admission"),
    ]
    assert names(critical_path(spans, 0.0, 10.0)) == [("admission", 0, 1), ("triton", 1, 9.5), ("admission", 9.5, 10)]


def test_the_longer_branch_is_told_in_its_parts():
    spans = [
        span("admission", 0.0, 10.0),
        span("agent", 1.0, 9.5, "admission"),
        span("read", 2.0, 5.0, "agent"),
        span("build", 5.5, 9.0, "agent"),
        span("triton", 1.5, 6.0, "admission"),
    ]
    assert [name for name, _, _ in names(critical_path(spans, 0.0, 10.0))] == [
        *("admission", "agent", "read", "agent", "build", "agent", "admission")
    ]


def test_time_without_a_span_has_its_own_row():
    path = critical_path([span("a", 1.0, 2.0), span("before", -5.0, -1.0), span("empty", 1.5, 1.5)], 0.0, 4.0)
    assert names(path) == [(UNEXPLAINED, 0, 1), ("a", 1, 2), (UNEXPLAINED, 2, 4)]


def test_no_time_no_path():
    assert critical_path([span("a", 0.0, 1.0)], 0.5, 0.5) == ()


@pytest.mark.parametrize("seed", range(200))
def test_any_spans_are_tiled_exactly(seed):
    rng = random.Random(seed)
    start, end = 10.0, 10.0 + rng.choice([0.25, 1, 5])
    spans = []
    for index in range(rng.randrange(12)):
        left = rng.randrange(36, 64) / 4
        spans.append(span(f"s{index % 5}", left, left + rng.randrange(-1, 12) / 4))
    path = critical_path(spans, start, end)
    assert path[0].start_s == start
    assert path[-1].end_s == end
    for before, after in pairwise(path):
        assert before.end_s == after.start_s
        assert before.name != after.name
    assert sum(segment.duration_s for segment in path) == pytest.approx(end - start)
    for segment in path:
        assert segment.duration_s > 0
        _explained(segment, spans)
    assert path == critical_path(list(reversed(spans)), start, end)


def _explained(segment, spans):
    middle = (segment.start_s + segment.end_s) / 2
    covering = [s for s in spans if s.start_s <= middle < s.end_s]
    if segment.name == UNEXPLAINED:
        assert not covering
    else:
        assert segment.name in {s.name for s in covering}


def test_the_book_keeps_the_last_streams_newest_first():
    book = ReceiptBook(capacity=2)
    for stream, kind in (("a", "cold"), ("b", "warm"), ("a", "resumed"), ("c", "warm")):
        book.add(receipt(stream, kind=kind))
    assert [r.stream for r in book.newest()] == ["c", "a", "a"]
    assert [r.kind for r in book.of(StreamId("a"))] == ["cold", "resumed"]
    assert book.of(StreamId("b")) == ()
    assert len(book.newest(1)) == 1


def test_a_stream_of_another_tenant_is_as_if_it_had_never_been():
    book = ReceiptBook()
    for kind in ("cold", "resumed"):
        book.add(receipt("a", kind=kind), "mine")
    book.add(receipt("b"))
    assert [r.kind for r in book.of(StreamId("a"), "mine")] == ["cold", "resumed"]
    assert book.of(StreamId("a"), "other") == book.of(StreamId("a"), "") == book.of(StreamId("nope"), "other") == ()
    assert book.of(StreamId("b"), "mine") == ()
    assert len(book.of(StreamId("a"))) == 2
    assert len(book.of(StreamId("b"), "")) == 1


def test_a_busy_tenant_does_not_push_out_the_receipts_of_another():
    book = ReceiptBook(capacity=3)
    book.add(receipt("quiet"), "quiet")
    for number in range(10):
        book.add(receipt(f"busy-{number}"), "busy")
    assert len(book.of(StreamId("quiet"), "quiet")) == 1
    assert [r.stream for r in book.newest()] == ["busy-9", "busy-8", "quiet"]


def test_json_is_relative_to_the_request():
    body = to_json(receipt())
    assert body["actual_s"] == pytest.approx(0.5)
    assert [row["name"] for row in body["critical_path"]] == ["triton_load", "weights", "forward", UNEXPLAINED]
    assert body["critical_path"][0]["start_s"] == 0
    assert sum(row["duration_s"] for row in body["critical_path"]) == pytest.approx(0.5)


@pytest.mark.parametrize("exactness", [None, Exactness(kind="exact", reason="proven", contract="0")])
def test_a_receipt_comes_back_from_its_json(exactness):
    written = receipt(start_s=0.0, first_token_s=0.5, spans=(span("first_token", 0.0, 0.5),), exactness=exactness)
    assert from_json(json.loads(json.dumps(to_json(written)))) == written


COMPARISON = Comparison(
    predicted=StartTerms(room_s=0.01, queue_s=0.1, transfer_s=0.2, fixed_s=0.09),
    uncertainty_s=0.05,
    actual=StartTerms(room_s=0.0, queue_s=0.15, transfer_s=0.2, fixed_s=0.15),
)


def test_a_receipt_tells_every_term_of_its_start_predicted_and_actual():
    told = to_json(receipt(comparison=COMPARISON))["comparison"]
    assert (told["predicted"]["queue_s"], told["actual"]["queue_s"], told["uncertainty_s"]) == (0.1, 0.15, 0.05)
    assert (told["predicted"]["total_s"], told["actual"]["total_s"]) == (pytest.approx(0.4), pytest.approx(0.5))
    assert COMPARISON.relative_error == pytest.approx(0.2)


def test_the_comparison_comes_back_from_json():
    written = receipt(start_s=0.0, first_token_s=0.5, spans=(), comparison=COMPARISON)
    assert from_json(json.loads(json.dumps(to_json(written)))) == written


def test_the_table_shows_what_was_predicted_give_or_take_beside_when_it_was_ready():
    (row,) = [line for line in format_table([receipt(comparison=COMPARISON)]).splitlines() if "dram" in line]
    assert "0.400 ± 0.050 s" in row
    assert row.index("0.400") < row.rindex("0.500 s")


def test_table_shows_predicted_beside_actual_and_the_path():
    table = format_table([receipt(), receipt("s2", kind="warm", tier=None, bytes=0, predicted_s=None)])
    assert "0.400 s" in table
    assert "0.500 s" in table
    assert "weights 250 ms" in table
    assert len({len(line) for line in table.splitlines()[:1]}) == 1
    assert format_table([])
