"""How long an attach on a GPU would take, given how long one in DRAM would. Pure."""

from __future__ import annotations

from .receipts import Estimate

# Until a device has been measured: a PCIe 3 link of sixteen lanes.
ASSUMED_COPY_BYTES_PER_SECOND = 1e10

ON_GPU = Estimate(tier="gpu", queue_s=0.0, read_s=0.0, copy_s=0.0, total_s=0.0, is_measured=True)


def estimate_copy(*, into_dram: Estimate, copy_bytes: int, measured_bytes_per_second: float | None) -> Estimate:
    """Of what is not on the device yet. Chunks are copied while others are read, so the slower of the two counts."""
    copy_s = copy_bytes / (measured_bytes_per_second or ASSUMED_COPY_BYTES_PER_SECOND)
    return Estimate(
        tier=into_dram.tier,
        queue_s=into_dram.queue_s,
        read_s=into_dram.read_s,
        copy_s=copy_s,
        total_s=into_dram.queue_s + max(into_dram.read_s, copy_s),
        is_measured=into_dram.is_measured and measured_bytes_per_second is not None,
    )
