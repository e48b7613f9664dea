"""What each key may take: token buckets for the moment, a day's quota of tokens, calls at a time. Pure: time comes in.

A request is counted when it comes, its tokens (prompt and answer) when it has ended, because nobody knows them before.
Calls are counted too, whatever they ask, and there may be ten times as many of them as of requests. A bucket of tokens
may be overdrawn by what runs at the same time; then nothing more is let in until it has filled again. What runs is
never cut. The figures are this gateway's alone and start anew with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from serverless_triton.scheduler.errors import RateLimited
from serverless_triton.scheduler.identity import Caller, Quota

_MINUTE_S = 60.0
_DAY_S = 86_400.0
_CALL_WAIT_S = 1.0  # until another call may have ended
_CALLS_PER_REQUEST = 10  # metadata, an index, an outlook, a wrong request: what costs this process, and no server


@dataclass(slots=True)
class _Bucket:
    """Fills with time up to a capacity. A new one is full."""

    level: float | None = None
    at_s: float = 0.0

    def fill(self, per_second: float, capacity: float, now_s: float) -> float:
        """The level now."""
        level = capacity if self.level is None else self.level + (now_s - self.at_s) * per_second
        self.level, self.at_s = min(level, capacity), now_s
        return self.level

    def drain(self, count: float) -> None:
        self.level = (self.level or 0.0) - count


@dataclass(slots=True)
class _Account:
    """What one key has taken."""

    requests: _Bucket = field(default_factory=_Bucket)
    calls: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)
    day: int = 0  # since 1970, in UTC
    tokens_today: int = 0
    open_calls: int = 0


class Limiter:
    """The accounts of all keys. `clock` counts seconds, `wall_clock` tells Unix time.

    A key without a number of its own has `max_open_calls` at the same time; who needs none has no limit.
    """

    def __init__(
        self, clock: Callable[[], float], wall_clock: Callable[[], float], *, max_open_calls: int | None = None
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._max_open_calls = max_open_calls
        self._accounts: dict[str, _Account] = {}

    def take(self, caller: Caller) -> None:
        """Counts one request, unless it is refused. Raises RateLimited."""
        quota, account = caller.quota, self._account(caller)
        self._check_day(quota, account)
        self._check_tokens(quota, account)
        self._take_request(quota, account)

    def take_call(self, caller: Caller) -> None:
        """Counts one call, or one message of a client's stream, unless it is refused. Raises RateLimited."""
        per_second = caller.quota.requests_per_second
        if per_second is not None:
            self._take_one(self._account(caller).calls, per_second * _CALLS_PER_REQUEST, "calls", _CALLS_PER_REQUEST)

    def begin_call(self, caller: Caller) -> None:
        """Before a call that `end_call` ends, whatever it asks. Raises RateLimited, and then there is none to end."""
        account, allowed = self._account(caller), caller.quota.open_calls or self._max_open_calls
        if caller.key and allowed is not None and account.open_calls >= allowed:
            raise _refused(f"{allowed} calls at the same time", "requests", _CALL_WAIT_S)
        account.open_calls += 1

    def end_call(self, caller: Caller) -> None:
        self._account(caller).open_calls -= 1

    def spend(self, caller: Caller, tokens: int) -> None:
        """Counts the tokens of a request that has ended, however it did."""
        account = self._account(caller)
        self._begin_day(account)
        account.tokens_today += tokens
        per_minute = caller.quota.tokens_per_minute
        if per_minute is not None:
            account.tokens.fill(per_minute / _MINUTE_S, per_minute, self._clock())
            account.tokens.drain(tokens)

    def _account(self, caller: Caller) -> _Account:
        return self._accounts.setdefault(caller.key, _Account())

    def _begin_day(self, account: _Account) -> None:
        today = int(self._wall_clock() // _DAY_S)
        if today != account.day:
            account.day, account.tokens_today = today, 0

    def _check_day(self, quota: Quota, account: _Account) -> None:
        self._begin_day(account)
        if quota.tokens_per_day is not None and account.tokens_today >= quota.tokens_per_day:
            wait_s = _DAY_S - self._wall_clock() % _DAY_S
            raise _refused(f"{quota.tokens_per_day} tokens a day", "quota", wait_s)

    def _check_tokens(self, quota: Quota, account: _Account) -> None:
        if quota.tokens_per_minute is None:
            return
        per_second = quota.tokens_per_minute / _MINUTE_S
        level = account.tokens.fill(per_second, quota.tokens_per_minute, self._clock())
        if level < 1:
            raise _refused(f"{quota.tokens_per_minute} tokens a minute", "tokens", (1 - level) / per_second)

    def _take_request(self, quota: Quota, account: _Account) -> None:
        if quota.requests_per_second is not None:
            self._take_one(account.requests, quota.requests_per_second, "requests", 1)

    def _take_one(self, bucket: _Bucket, per_second: float, of_what: str, at_once: int) -> None:
        """As many at once as a second has, but at least `at_once`."""
        level = bucket.fill(per_second, max(at_once, per_second), self._clock())
        if level < 1:
            raise _refused(f"{per_second:g} {of_what} a second", "requests", (1 - level) / per_second)
        bucket.drain(1)


def _refused(limit: str, what: Literal["requests", "tokens", "quota"], wait_s: float) -> RateLimited:
    return RateLimited(f"the key has used its {limit}; try again in {wait_s:.1f} s", what=what, retry_after_s=wait_s)
