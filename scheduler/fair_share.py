"""Whose turn is it among tenants that wait? Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM '96). Pure.

A place costs its tenant 1/weight of virtual time, and the tenant whose next place starts earliest in it comes next. So
tenants that wait get places in proportion to their weights, however much each asks for, and none waits forever: between
two places of one, another of the same weight gets two at most. Virtual time is that of the last place given; who comes
back starts there, since what was not asked for is nobody's due.

A request's priority counts within its tenant only, or every tenant would claim the highest. It is worth age: so a
request of low priority is overtaken by those that come within a bounded time, and by no others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Triton's priorities: 1 comes first. 0 is the default, and whatever is no level, as in Triton.
LEVELS = 9
DEFAULT_LEVEL = 5
SECONDS_A_LEVEL = 10.0


def standing_since_s(since_s: float, priority: int) -> float:
    """When a request would have come that stands where this one does with the default priority."""
    level = priority if 1 <= priority <= LEVELS else DEFAULT_LEVEL
    return since_s + (level - DEFAULT_LEVEL) * SECONDS_A_LEVEL


@dataclass(slots=True)
class FairShare:
    """Virtual time. A tenant must `arrive` before it is asked about or charged."""

    _now: float = 0.0
    _next_start: dict[str, float] = field(default_factory=dict)

    def arrive(self, tenant: str) -> None:
        """It waits, after nobody of it did."""
        self._next_start[tenant] = max(self._now, self._next_start.get(tenant, 0.0))

    def next_start(self, tenant: str) -> float:
        """Of its next place. The least comes next."""
        return self._next_start[tenant]

    def charge(self, tenant: str, weight: int) -> None:
        """It got a place. Whom no place fitted for a while has this one before others, but not all that it missed."""
        self._now = max(self._now, self._next_start[tenant])
        self._next_start[tenant] = self._now + 1 / weight

    def copy(self) -> FairShare:
        return FairShare(self._now, dict(self._next_start))
