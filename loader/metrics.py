"""How fast each tier has been lately, and what all loads added up to. Pure; time comes in as durations."""

from __future__ import annotations

from collections import Counter, defaultdict
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal

from .store_status import StoreStatus

Outcome = Literal["loaded", "failed", "cancelled"]
# The tier of a load that came to nothing.
NO_TIER = "none"

# Weight of the newest load. Bandwidth shifts with what else uses the disk, so the last handful of loads should rule.
NEWEST_WEIGHT = 0.3
ALL_DEVICES = ""
# Shorter loads measure latency, not bandwidth.
MIN_SAMPLE_BYTES = 1 << 20


class BandwidthMeter:
    """An exponentially weighted moving average of bytes per second for each device and tier, and for each tier."""

    def __init__(self) -> None:
        self._averages: dict[tuple[str, str], float] = {}

    def record(self, device: str, tier: str, moved_bytes: int, duration_s: float) -> None:
        """Takes one finished load into account."""
        if moved_bytes < MIN_SAMPLE_BYTES or duration_s <= 0:
            return
        sample = moved_bytes / duration_s
        for key in ((device, tier), (ALL_DEVICES, tier)):
            average = self._averages.get(key, sample)
            self._averages[key] = average + NEWEST_WEIGHT * (sample - average)

    def bytes_per_second(self, device: str = ALL_DEVICES) -> dict[str, float]:
        """The averages by tier; tiers that were never measured are absent."""
        return {tier: self._averages[name, tier] for name, tier in sorted(self._averages) if name == device}

    @property
    def devices(self) -> list[str]:
        """Those that were measured."""
        return sorted({device for device, _ in self._averages} - {ALL_DEVICES})


@dataclass(slots=True, kw_only=True)
class LoadTotals:
    """Sums since the store began. A load from "dram" is an attach that needed no reading."""

    loads: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    verification_failures: int = 0

    def loaded(self, tier: str, read_bytes: int, duration_s: float) -> None:
        """One load ended well; in all its waiters' names, and without any where it was prefetched."""
        self.loads[tier, "loaded"] += 1
        self.bytes[tier] += read_bytes
        self.seconds[tier] += duration_s

    def failed(self, outcome: Outcome, *, corrupted: bool) -> None:
        """One load came to nothing."""
        self.loads[NO_TIER, outcome] += 1
        self.verification_failures += corrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSnapshot:
    """Everything that is counted, at one moment. `totals` is a copy of its own."""

    status: StoreStatus
    totals: LoadTotals

    @staticmethod
    def of(status: StoreStatus, totals: LoadTotals) -> StoreSnapshot:
        return StoreSnapshot(status=status, totals=deepcopy(totals))
