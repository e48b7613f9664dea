"""Bytes that requests hold, counted together."""

from __future__ import annotations

import pytest

from serverless_triton.scheduler.errors import Overloaded
from serverless_triton.scheduler.gateway.message_budget import MessageBudget


def test_what_a_request_held_is_free_again_when_it_has_ended():
    budget = MessageBudget(10)
    with budget.share(4) as share:
        share.add(6)
        assert budget.held_bytes == 10
    assert budget.held_bytes == 0


def test_what_does_not_fit_beside_the_others_is_refused_with_a_time_to_come_again():
    budget = MessageBudget(10)
    with budget.share(6), pytest.raises(Overloaded, match="all of 10 bytes") as caught, budget.share(5):
        pass
    assert caught.value.retry_after_s is not None
    assert budget.held_bytes == 0


def test_a_request_that_grows_too_large_gives_back_what_it_had():
    budget = MessageBudget(10)
    with pytest.raises(Overloaded), budget.share(6) as share:
        share.add(5)
    assert budget.held_bytes == 0
