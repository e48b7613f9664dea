"""Less than this no move can take (pure): what lets the policy leave most servers alone that would have to move others.

A floor must stay below every server's estimate as servers get faster. So it is made with the fastest of all, rounded
up, and made anew only where a server gets past that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from serverless_triton.scheduler.estimator import LINKS, path_bandwidth
from serverless_triton.scheduler.view import ReplicaView, ServerView

_SLACK = 1.1  # what is rounded to powers of


@dataclass(slots=True)
class MoveFloors:
    """The fastest tiers and the least fixed costs that any server has had, or a little better."""

    bandwidth: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LINKS, 1.0))
    fixed_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LINKS, math.inf))

    def widen(self, server: ServerView) -> bool:
        """Whether floors made before may be too high now that this server is there."""
        was_passed = False
        for tier in self.bandwidth:
            fixed_s = _least_fixed_s(server, tier)
            bandwidth = path_bandwidth(server, tier)
            if bandwidth > self.bandwidth[tier]:
                self.bandwidth[tier], was_passed = _above(bandwidth), True
            if fixed_s < self.fixed_s[tier]:
                self.fixed_s[tier], was_passed = (1 / _above(1 / fixed_s) if fixed_s > 0 else 0.0), True
        return was_passed

    def floor_s(self, replica: ReplicaView, *, is_there: bool, in_dram: bool) -> float:
        """Of a move of this replica, its streams' tokens not counted. `is_there`: another server runs its model;
        `in_dram`: another has its checkpoint there.
        """
        assert replica.model_view is not None
        fixed_s = replica.model_view.migration_fixed_s
        if is_there:
            return fixed_s
        tiers = ["ssd"] + ["remote"] * replica.model_view.is_remote + ["dram"] * in_dram
        return fixed_s + min(self._start_s(replica, tier) for tier in tiers)

    def _start_s(self, replica: ReplicaView, tier: str) -> float:
        assert replica.model_view is not None
        offset_s = min(replica.model_view.fixed_offset_s.values(), default=0.0)
        start_s = replica.checkpoint_bytes / self.bandwidth[tier] + self.fixed_s[tier] + min(offset_s, 0.0)
        return max(0.0, start_s)


def _least_fixed_s(server: ServerView, tier: str) -> float:
    return min(by_tier[tier] for by_tier in server.fixed_start_s.values())


def _above(value: float) -> float:
    return float(_SLACK ** math.ceil(math.log(value, _SLACK) + 1e-9))
