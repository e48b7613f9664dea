"""How a request shows its key, and what is visible to whom."""

from __future__ import annotations

import time

import pytest

from serverless_triton.scheduler.catalogue import Catalogue, VisibleModels
from serverless_triton.scheduler.errors import Unauthenticated, UnknownModel
from serverless_triton.scheduler.gateway.access import Access, presented_key
from serverless_triton.scheduler.gateway.limits import Limiter
from serverless_triton.scheduler.identity import ALL, ANONYMOUS, ModelRule
from tests.unit.gateway.samples import add_model


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer k")],
        [("authorization", b"bearer  k ")],
        [("X-API-Key", "k")],
        [("Host", "a"), ("x-api-key", "k"), ("authorization", "Bearer k")],
    ],
)
def test_a_key_is_read_from_either_header(headers):
    assert presented_key(headers) == "k"


def test_no_header_no_key():
    assert presented_key([("host", "a")]) is None


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([("authorization", "Basic a2V5")], "must be 'Bearer KEY'"),
        ([("authorization", "k")], "must be 'Bearer KEY'"),
        ([("authorization", "Bearer k"), ("x-api-key", "l")], "several API keys"),
        ([("x-api-key", "k"), ("x-api-key", "l")], "several API keys"),
    ],
)
def test_other_ways_to_show_one_are_refused(headers, words):
    with pytest.raises(Unauthenticated, match=words):
        presented_key(headers)


def test_without_keys_everybody_is_let_in_whatever_is_shown():
    assert Access(None, Limiter(time.monotonic, time.time)).caller([("authorization", "Basic a2V5")]) is ANONYMOUS


def test_models_that_a_rule_leaves_out_are_as_if_they_were_not_there(repository, catalogue: Catalogue):
    add_model(repository, "n")
    add_model(repository, "broken", "name: {")
    visible = VisibleModels(catalogue, ModelRule(patterns=("m",)))
    assert [entry.name for entry in visible.entries()] == ["m"]
    assert visible.broken() == ()
    assert visible.entry("m").name == "m"
    with pytest.raises(UnknownModel) as hidden:
        visible.entry("broken")
    with pytest.raises(UnknownModel) as absent:
        catalogue.entry("nope")
    assert str(hidden.value) == str(absent.value).replace("nope", "broken")


def test_the_rule_for_all_hides_nothing(repository, catalogue: Catalogue):
    add_model(repository, "broken", "name: {")
    visible = VisibleModels(catalogue, ALL)
    assert visible.entries() == catalogue.entries()
    assert visible.broken() == catalogue.broken()
