"""What bounds the control loop, and which failed starts it tries again elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

# A start that failed for these reasons may go well on another server; any other failure is the model's own.
TRANSIENT = frozenset({"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlLimits:
    """How much may wait, how often a start is tried elsewhere, what stays of replicas that nobody uses."""

    max_waiting_per_model: int = 1024
    max_failed_starts: int = 3
    # An idle replica is parked after that. None: as its model's idle times teach, and where they don't (or may not)
    # only where room is needed.
    keep_alive_s: float | None = None
    adaptive_keep_alive: bool = True
    # Checkpoints that nobody has asked for yet: so many bytes of a server's DRAM for those expected within that time.
    prefetch_bytes_per_server: int = 0
    prefetch_horizon_s: float = 30.0
    # Beyond these the stubs that have been parked longest are unloaded.
    max_parked_per_server: int = 16
    max_parked_bytes_per_server: int = 512 << 20
