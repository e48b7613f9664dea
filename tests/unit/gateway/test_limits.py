"""Rates and quotas of a key, on clocks that the test moves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from serverless_triton.scheduler.errors import RateLimited
from serverless_triton.scheduler.gateway.limits import Limiter
from serverless_triton.scheduler.identity import ALL, ANONYMOUS, Caller, Quota

DAY_S = 86_400


@dataclass
class Times:
    now_s: float = 1000.0
    unix_s: float = 10 * DAY_S + 3600.0

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds
        self.unix_s += seconds


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def limiter(times: Times) -> Limiter:
    return Limiter(lambda: times.now_s, lambda: times.unix_s)


def caller(key: str = "k", **quota: float) -> Caller:
    return Caller(tenant="t", models=ALL, key=key, quota=Quota(**quota))


def refusal(limiter: Limiter, who: Caller) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        limiter.take(who)
    return caught.value


def test_no_limit_no_refusal(limiter: Limiter):
    for _ in range(10_000):
        limiter.take(ANONYMOUS)
        limiter.spend(ANONYMOUS, 10**6)


def test_requests_come_at_once_up_to_a_second_of_them_and_then_at_their_rate(limiter: Limiter, times: Times):
    who = caller(requests_per_second=4)
    for _ in range(4):
        limiter.take(who)
    error = refusal(limiter, who)
    assert (error.code, error.what, error.retry_after_s) == ("RESOURCE_EXHAUSTED", "requests", pytest.approx(0.25))
    times.pass_s(0.25)
    limiter.take(who)
    refusal(limiter, who)


def test_less_than_one_request_a_second_still_lets_one_in(limiter: Limiter, times: Times):
    who = caller(requests_per_second=0.1)
    limiter.take(who)
    assert refusal(limiter, who).retry_after_s == pytest.approx(10)
    times.pass_s(10.001)
    limiter.take(who)


def test_a_refused_request_costs_nothing(limiter: Limiter, times: Times):
    who = caller(requests_per_second=1)
    limiter.take(who)
    for _ in range(5):
        refusal(limiter, who)
    times.pass_s(1)
    limiter.take(who)


def test_tokens_are_counted_afterwards_and_an_overdraft_has_to_fill_up(limiter: Limiter, times: Times):
    who = caller(tokens_per_minute=60)
    limiter.take(who)
    limiter.take(who)  # nothing is known of the first one's tokens yet
    limiter.spend(who, 50)
    limiter.take(who)
    limiter.spend(who, 30)
    error = refusal(limiter, who)
    assert (error.what, error.retry_after_s) == ("tokens", pytest.approx(21))
    times.pass_s(21.001)
    limiter.take(who)


def test_a_bucket_never_holds_more_than_a_minute_of_tokens(limiter: Limiter, times: Times):
    who = caller(tokens_per_minute=60)
    limiter.take(who)
    times.pass_s(3600)
    limiter.spend(who, 60)
    assert refusal(limiter, who).retry_after_s == pytest.approx(1)


def test_a_day_ends_at_midnight_in_utc(limiter: Limiter, times: Times):
    who = caller(tokens_per_day=100)
    limiter.spend(who, 99)
    limiter.take(who)
    limiter.spend(who, 1)
    error = refusal(limiter, who)
    assert (error.what, error.retry_after_s) == ("quota", pytest.approx(23 * 3600))
    times.pass_s(23 * 3600)
    limiter.take(who)


def test_tokens_of_a_stream_that_ends_after_midnight_are_the_new_days(limiter: Limiter, times: Times):
    who = caller(tokens_per_day=100)
    limiter.take(who)
    times.pass_s(23 * 3600)
    limiter.spend(who, 100)
    assert refusal(limiter, who).what == "quota"


def test_keys_are_counted_apart(limiter: Limiter):
    limiter.take(caller("a", requests_per_second=1))
    limiter.take(caller("b", requests_per_second=1))
    refusal(limiter, caller("a", requests_per_second=1))


def test_new_limits_of_a_key_count_at_once(limiter: Limiter):
    who = caller(requests_per_second=5)
    limiter.take(who)
    tighter = replace(who, quota=Quota(requests_per_second=1))
    limiter.take(tighter)
    refusal(limiter, tighter)


def test_calls_at_the_same_time_are_let_in_again_when_one_has_ended(limiter):
    who = caller(open_calls=2)
    limiter.begin_call(who)
    limiter.begin_call(who)
    with pytest.raises(RateLimited, match="2 calls at the same time"):
        limiter.begin_call(who)
    limiter.begin_call(caller("other", open_calls=1))  # has its own
    limiter.end_call(who)
    limiter.begin_call(who)


def test_a_key_without_a_number_of_calls_has_the_gateways(times):
    limiter = Limiter(lambda: times.now_s, lambda: times.unix_s, max_open_calls=1)
    limiter.begin_call(caller())
    with pytest.raises(RateLimited, match="1 calls at the same time"):
        limiter.begin_call(caller())
    more = caller("more", open_calls=2)
    limiter.begin_call(more)
    limiter.begin_call(more)


def test_who_needs_no_key_has_no_limit_of_calls(times):
    limiter = Limiter(lambda: times.now_s, lambda: times.unix_s, max_open_calls=1)
    limiter.begin_call(ANONYMOUS)
    limiter.begin_call(ANONYMOUS)
