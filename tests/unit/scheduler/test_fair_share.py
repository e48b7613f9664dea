"""Fair shares of places, against the bounds that start-time fair queueing is proved to keep."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_triton.scheduler.fair_share import (
    DEFAULT_LEVEL,
    LEVELS,
    SECONDS_A_LEVEL,
    FairShare,
    standing_since_s,
)

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 20), min_size=2)


def served(share: FairShare, weights: dict[str, int]) -> str:
    """Who gets the next place, of tenants that all wait."""
    tenant = min(sorted(weights), key=share.next_start)
    share.charge(tenant, weights[tenant])
    return tenant


def arrived(weights: dict[str, int]) -> FairShare:
    share = FairShare()
    for tenant in weights:
        share.arrive(tenant)
    return share


@settings(deadline=None)
@given(weights=WEIGHTS, places=st.integers(1, 120), start=st.integers(0, 60))
def test_in_any_stretch_tenants_that_wait_get_places_by_their_weights(
    weights: dict[str, int], places: int, start: int
) -> None:
    share = arrived(weights)
    order = [served(share, weights) for _ in range(start + places)][start:]
    for a in weights:
        for b in weights:
            apart = abs(order.count(a) / weights[a] - order.count(b) / weights[b])
            assert apart <= 1 / weights[a] + 1 / weights[b] + 1e-6


@settings(deadline=None)
@given(weights=WEIGHTS)
def test_between_two_places_of_one_tenant_the_others_get_a_bounded_number(weights: dict[str, int]) -> None:
    share = arrived(weights)
    order = [served(share, weights) for _ in range(300)]
    for tenant in weights:
        bound = sum(weights[other] / weights[tenant] + 1 for other in weights if other != tenant)
        turns = [-1, *(index for index, name in enumerate(order) if name == tenant)]
        assert len(turns) > 1
        assert all(later - earlier - 1 <= bound + 1e-6 for earlier, later in pairwise(turns))


@settings(deadline=None)
@given(before=st.integers(0, 50), weight=st.integers(1, 10))
def test_who_was_away_has_no_claim_to_what_it_did_not_ask_for(before: int, weight: int) -> None:
    weights = {"away": 1, "there": weight}
    share = arrived(weights)
    for _ in range(before):
        share.charge("there", weight)
    share.arrive("away")
    order = [served(share, weights) for _ in range(1 + 4 * (weight + 1))]
    assert order.count("away") <= 4 + 2


@settings(deadline=None)
@given(missed=st.integers(1, 50))
def test_whom_nothing_fitted_for_a_while_is_next_once(missed: int) -> None:
    weights = {"large": 1, "small": 1}
    share = arrived(weights)
    for _ in range(missed):
        share.charge("small", 1)  # the large one's model had no room anywhere
    assert [served(share, weights) for _ in range(3)].count("large") <= 2
    assert share.next_start("large") >= missed - 1


def test_a_copy_goes_its_own_way() -> None:
    share = arrived({"a": 1})
    other = share.copy()
    other.charge("a", 1)
    assert (share.next_start("a"), other.next_start("a")) == (0.0, 1.0)


@pytest.mark.parametrize("priority", [0, DEFAULT_LEVEL, LEVELS + 1, -1, 2**64 - 1])
def test_what_is_no_level_is_the_default(priority: int) -> None:
    assert standing_since_s(100.0, priority) == 100.0


def test_a_level_is_worth_a_bounded_age() -> None:
    stands = [standing_since_s(100.0, priority) for priority in range(1, LEVELS + 1)]
    assert stands == sorted(stands)
    assert stands[-1] - stands[0] == (LEVELS - 1) * SECONDS_A_LEVEL
