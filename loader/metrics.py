"""How fast each tier has been lately, for those who predict the next load. Pure; time comes in as durations."""

from __future__ import annotations

# Weight of the newest load. Bandwidth shifts with what else uses the disk, so the last handful of loads should rule.
NEWEST_WEIGHT = 0.3
# Shorter loads measure latency, not bandwidth.
MIN_SAMPLE_BYTES = 1 << 20


class BandwidthMeter:
    """An exponentially weighted moving average of bytes per second for each tier."""

    def __init__(self) -> None:
        self._averages: dict[str, float] = {}

    def record(self, tier: str, moved_bytes: int, duration_s: float) -> None:
        """Takes one finished load into account."""
        if moved_bytes < MIN_SAMPLE_BYTES or duration_s <= 0:
            return
        sample = moved_bytes / duration_s
        average = self._averages.get(tier, sample)
        self._averages[tier] = average + NEWEST_WEIGHT * (sample - average)

    def bytes_per_second(self) -> dict[str, float]:
        """The averages by tier; tiers that were never measured are absent."""
        return dict(sorted(self._averages.items()))
