"""When places on full replicas, and busy replicas themselves, are expected to be free: what the policy may wait for.

A stream goes on for as long as its model's streams usually do, and one that has gone on for longer than half of that
for as long again: lengths of answers have heavy tails. Of several that end independently the first does after
1/Σ(1/r), the last after about r₁ + r₂/2 + r₃/3 + ..., the longest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from serverless_triton.scheduler.cluster import Cluster, ReplicaState
from serverless_triton.scheduler.outlook import HoldTimes
from serverless_triton.scheduler.view import Phase


@dataclass(slots=True, kw_only=True)
class Expectations:
    """The control loop's. `unserved` are those of a model who wait without having joined a start."""

    cluster: Cluster
    holds: HoldTimes
    clock: Callable[[], float]
    unserved: Callable[[str], int]

    def renew(self, replica: ReplicaState) -> None:
        """After its streams have changed, or more wait for its model."""
        hold_s = self.holds.typical_s(replica.model.name)
        if hold_s is None or not replica.streams:
            replica.frees_at_s = replica.idle_at_s = None
            return
        now_s = self.clock()
        begins_in_s = 0.0 if replica.phase is Phase.READY else max(0.0, replica.ready_at_s - now_s)
        remaining_s = [remaining(hold_s, self.holds.elapsed_s(stream, now_s)) for stream in replica.streams]
        replica.idle_at_s = now_s + begins_in_s + last_ends_s(remaining_s)
        replica.frees_at_s = None
        if replica.phase is Phase.READY and len(replica.streams) >= replica.model.max_streams:
            turns = max(1, self.unserved(replica.model.name))
            replica.frees_at_s = now_s + turns * first_ends_s(remaining_s)

    def renew_model(self, model: str) -> None:
        """Of all its replicas that are full: more wait for them. Only where twice as many do as when it was told last,
        since everybody who waits is asked anew then.
        """
        count = self.unserved(model)
        if count < 2 or count & (count - 1):
            return
        for shown in list(self.cluster.view().of_model(model)):
            if shown.frees_at_s is not None:
                self.renew(self.cluster.replicas[shown.id])
                self.cluster.changed(replica=shown.id)


def remaining(hold_s: float, elapsed_s: float) -> float:
    return max(hold_s - elapsed_s, elapsed_s)


def first_ends_s(remaining_s: Iterable[float]) -> float:
    return 1 / sum(1 / max(seconds, 1e-3) for seconds in remaining_s)


def last_ends_s(remaining_s: Iterable[float]) -> float:
    longest_first = sorted(remaining_s, reverse=True)
    return sum(seconds / place for place, seconds in enumerate(longest_first, 1))
