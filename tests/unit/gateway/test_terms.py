"""What calls say beside their messages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.terms import Terms, grpc_terms, http_terms


@pytest.mark.parametrize(
    ("said", "timeout_s"), [("1", 0.001), ("2500", 2.5), ("00005", 0.005), ("999999999", 999999.999)]
)
def test_a_header_gives_milliseconds(said, timeout_s):
    assert http_terms({"Triton-Request-Timeout-Ms": said}).timeout_s == timeout_s


@pytest.mark.parametrize("said", ["", "0", "-1", "1.5", "1e3", "soon", " 5", "١", "9" * 10, "0" * 5000 + "1"])
def test_a_header_that_is_no_time_is_refused(said):
    with pytest.raises(InvalidRequest, match="'Triton-Request-Timeout-Ms' must be whole milliseconds"):
        http_terms({"Triton-Request-Timeout-Ms": said})


def test_who_says_nothing_has_all_the_time_and_no_receipt():
    assert http_terms({}) == grpc_terms(None, ()) == Terms(timeout_s=None, returns_receipt=False)


@pytest.mark.parametrize(
    ("said", "asks"), [("true", True), ("True", True), ("1", True), ("false", False), ("0", False)]
)
def test_a_receipt_is_asked_for_by_header_or_metadata(said, asks):
    assert http_terms({"Triton-Return-Receipt": said}).returns_receipt is asks
    assert grpc_terms(None, [("triton-return-receipt", said)]).returns_receipt is asks


@pytest.mark.parametrize("said", ["", "yes", "2", b"true"])
def test_a_wish_that_is_neither_yes_nor_no_is_refused(said):
    with pytest.raises(InvalidRequest, match="'Triton-Return-Receipt' must be true or false"):
        grpc_terms(None, [("triton-return-receipt", said)])


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("request_itself", [False, True])
def test_a_receipt_is_asked_for_by_either(streamed, call, request_itself):
    asked = Terms(returns_receipt=call).of(replace(streamed, returns_receipt=request_itself))
    assert asked.returns_receipt is (call or request_itself)


@pytest.mark.parametrize(
    ("call_s", "request_s", "counts_s"),
    [(None, None, None), (2.0, None, 2.0), (None, 3.0, 3.0), (2.0, 3.0, 2.0), (4.0, 3.0, 3.0)],
)
def test_the_shorter_bound_counts(streamed, call_s, request_s, counts_s):
    assert Terms(timeout_s=call_s).of(replace(streamed, timeout_s=request_s)).timeout_s == counts_s
