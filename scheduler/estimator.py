"""How long a model would take to start on a server (pure).

    room + queue + bytes over the slowest link of their way + fixed cost (the server's by state and tier, the model's)

The estimate is ServerlessLLM's (OSDI '24, section 6.1) with our fixed cost beside it: from DRAM all of Triton's own
load shows, from SSD most of it hides behind the reading, and a parked stub needs none. Bytes move through all links at
once, so the slowest decides. The figures are learned from what starts took (`calibration.py`) and stand in the views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from serverless_triton.scheduler.admission import StartState, StartTerms
from serverless_triton.scheduler.view import ModelView, ServerView

FOREIGN_TIER = "triton"  # where the bytes of other backends' models come from
# Which links the bytes of a tier pass on their way to the device.
LINKS: Mapping[str, tuple[str, ...]] = {"dram": ("dram",), "ssd": ("ssd", "dram"), "remote": ("remote", "dram")}


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEstimate:
    """Seconds by cause. `tier` is where the bytes would come from, `uncertainty_s` the total's standard error."""

    state: StartState = "cold"
    tier: str
    queue_s: float
    transfer_s: float
    fixed_s: float
    room_s: float = 0.0
    uncertainty_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.queue_s + self.transfer_s + self.fixed_s + self.room_s  # in this order in columns, too

    @property
    def terms(self) -> StartTerms:
        return StartTerms(room_s=self.room_s, queue_s=self.queue_s, transfer_s=self.transfer_s, fixed_s=self.fixed_s)


def estimate_start(server: ServerView, model: ModelView, *, room_s: float = 0.0) -> StartEstimate:
    """From DRAM where the checkpoint is there already, else from SSD or from afar, behind what that queue holds.

    Another backend's model is read by Triton itself, as long as that took before.
    """
    if model.foreign:
        return StartEstimate(tier=FOREIGN_TIER, queue_s=0.0, transfer_s=0.0, fixed_s=model.load_s, room_s=room_s)
    state: StartState = "parked" if server.parked_stub(model) is not None else "cold"
    tier = tier_of(server, model)
    queue_s = queue_s_of(server, tier)
    transfer_s = model.checkpoint_bytes / path_bandwidth(server, tier)
    fixed_s = max(0.0, server.fixed_start_s[state][tier] + model.fixed_offset_s.get(state, 0.0))
    return StartEstimate(
        state=state,
        tier=tier,
        queue_s=queue_s,
        transfer_s=transfer_s,
        fixed_s=fixed_s,
        room_s=room_s,
        uncertainty_s=math.hypot(
            (queue_s + transfer_s) * server.bandwidth_error.get(tier, 0.0),
            server.fixed_error_s.get(state, {}).get(tier, 0.0),
            model.offset_error_s.get(state, 0.0),
        ),
    )


def tier_of(server: ServerView, model: ModelView) -> str:
    """Where the model's bytes would come from."""
    if model.checkpoint in server.in_dram:
        return "dram"
    return "remote" if model.is_remote and model.checkpoint not in server.on_ssd else "ssd"


def path_bandwidth(server: ServerView, tier: str) -> float:
    """Bytes/s of the slowest link from that tier to the device."""
    bandwidth = server.bandwidth
    return min([bandwidth.get(link, math.inf) for link in LINKS[tier]])


def queue_s_of(server: ServerView, tier: str) -> float:
    """Until that link has brought what was asked for before; DRAM has none to wait for."""
    queued_bytes = {"ssd": server.queued_bytes, "remote": server.remote_queued_bytes}.get(tier, 0)
    return queued_bytes / path_bandwidth(server, tier)


def parking_s(server: ServerView, count: int) -> float:
    """Until so many idle replicas are parked: all at once."""
    return server.park_s if count else 0.0


def migration_s(model: ModelView, tokens: int) -> float:
    """Until a running replica whose streams have so many input and output tokens has moved."""
    return model.migration_s_per_token * tokens + model.migration_fixed_s
