"""How long a load would take now: from which tier, behind which queue. Pure; sizes and bandwidths come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .receipts import Estimate, Tier

# Until a tier has been measured: a gigabit network, a slow NVMe disk, and one core that copies from the page cache.
ASSUMED_BYTES_PER_SECOND: Mapping[Tier, float] = {"remote": 1e8, "ssd": 1e9, "page_cache": 3e9}

IN_DRAM = Estimate(tier="dram", queue_s=0.0, read_s=0.0, copy_s=0.0, total_s=0.0, is_measured=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttles:
    """The configured limits of all reads from the SSD and of all from the network, 0 for none."""

    ssd_bytes_per_second: int = 0
    remote_bytes_per_second: int = 0

    def of(self, tier: Tier) -> int:
        return self.remote_bytes_per_second if tier == "remote" else self.ssd_bytes_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidths:
    """What is known of a device's tiers: averages of past loads, and the configured limit of all reads, 0 for none."""

    measured: Mapping[str, float]
    throttle_bytes_per_second: int

    def of(self, tier: Tier) -> tuple[float, bool]:
        """Bytes per second, and whether that is more than an assumption."""
        limit = self.throttle_bytes_per_second or float("inf")
        if tier in self.measured:
            return min(self.measured[tier], limit), True
        return min(ASSUMED_BYTES_PER_SECOND[tier], limit), limit < ASSUMED_BYTES_PER_SECOND[tier]


def estimate_read(*, tier: Tier, unread_bytes: int, bytes_ahead: int, bandwidths: Bandwidths) -> Estimate:
    """The load of a checkpoint that has `unread_bytes` to go in `tier`, once `bytes_ahead` of others are read.

    Where those lie is not asked: they count as in the slower tier of the device that they share, so a queue is rather
    over- than underestimated.
    """
    speed, is_measured = bandwidths.of(tier)
    ahead_speed, is_ahead_measured = bandwidths.of("remote" if tier == "remote" else "ssd")
    queue_s, read_s = bytes_ahead / ahead_speed, unread_bytes / speed
    return Estimate(
        tier=tier,
        queue_s=queue_s,
        read_s=read_s,
        copy_s=0.0,
        total_s=queue_s + read_s,
        is_measured=is_measured and (is_ahead_measured or bytes_ahead == 0),
    )
