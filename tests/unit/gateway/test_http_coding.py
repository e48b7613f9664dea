"""Which coding an answer gets, as Triton weighs them; and that what was coded is what it was."""

from __future__ import annotations

import gzip
import zlib

import pytest

from serverless_triton.scheduler.gateway.http_coding import encode, preferred_coding


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "deflate"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("identity, gzip;q=0.5", "identity"),
        ("gzip;q=0", "identity"),
        ("br, gzip;q=0.1", "gzip"),
        ("*", "identity"),
        ("gzip;q=high", "identity"),
        (";q=1, gzip", "gzip"),
        ("," * 5000, "identity"),
        ("gzip;q=" + "9" * 5000, "gzip"),
    ],
)
def test_the_first_of_the_heaviest_that_is_known_is_preferred(accepted: str | None, coding: str):
    assert preferred_coding(accepted) == coding


def test_a_body_comes_out_of_its_coding_as_it_went_in():
    body = b"text " * 100
    assert gzip.decompress(encode(body, "gzip")) == body
    assert zlib.decompress(encode(body, "deflate")) == body
    assert encode(body, "identity") == body
