"""How long a model would take to start on a server (pure).

The fixed cost is kept by state and tier: from DRAM all of Triton's own load shows, from SSD most of it hides behind the
reading, and a parked stub needs none.

The estimate is ServerlessLLM's (OSDI '24, section 6.1), with our fixed cost beside it: queue + bytes over bandwidth +
fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

from serverless_triton.scheduler.admission import StartState
from serverless_triton.scheduler.view import ModelView, ServerView

LEARNING_RATE = 0.3
FOREIGN_TIER = "triton"  # where the bytes of other backends' models come from


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEstimate:
    """Seconds by cause. `tier` is where the bytes would come from."""

    state: StartState = "cold"
    tier: str
    queue_s: float
    transfer_s: float
    fixed_s: float
    room_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.room_s + self.queue_s + self.transfer_s + self.fixed_s


def estimate_start(server: ServerView, model: ModelView) -> StartEstimate:
    """From DRAM where the checkpoint is there already, else from SSD behind what that queue holds.

    Another backend's model is read by Triton itself, as long as that took before.
    """
    if model.foreign:
        return StartEstimate(tier=FOREIGN_TIER, queue_s=0.0, transfer_s=0.0, fixed_s=model.load_s)
    state: StartState = "parked" if server.parked_stub(model) is not None else "cold"
    fixed_s = server.fixed_start_s[state]
    if model.checkpoint in server.in_dram:
        transfer_s = model.checkpoint_bytes / server.bandwidth["dram"]
        return StartEstimate(state=state, tier="dram", queue_s=0.0, transfer_s=transfer_s, fixed_s=fixed_s["dram"])
    return StartEstimate(
        state=state,
        tier="ssd",
        queue_s=server.queued_bytes / server.bandwidth["ssd"],
        transfer_s=model.checkpoint_bytes / server.bandwidth["ssd"],
        fixed_s=fixed_s["ssd"],
    )


def learn_fixed_cost(known_s: float, estimate: StartEstimate, actual_s: float) -> float:
    """The fixed cost after one more start: an exponential average of what the other terms left unexplained."""
    observed_s = max(0.0, actual_s - estimate.queue_s - estimate.transfer_s)
    return known_s + LEARNING_RATE * (observed_s - known_s)
