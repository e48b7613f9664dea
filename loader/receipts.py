"""What bringing a checkpoint to a client cost, or would cost now, and the tier that its bytes came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tier = Literal["remote", "ssd", "page_cache", "dram", "gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReceipt:
    """What one attach cost and where its bytes came from.

    `tier` is where most bytes were when this client asked. `queue_s` until the load began and `read_s` from there (or
    from asking, where it had begun) until it was complete, and `copy_s` from there until it was on the GPU (0 for an
    attach in DRAM), by the store's monotonic clock; `attach_s` mapping and making tensors, by the client's. `direct_io`
    says that every byte from the SSD went past the page cache, `verified` that every byte was compared with its hash
    when the store read it, `scattered` that a file has no contiguous place in the arena. `throttle_bytes_per_second` is
    the store's configured limit of reads from the tier's device, 0 for none.
    """

    tier: Tier
    bytes: int
    queue_s: float
    read_s: float
    copy_s: float
    attach_s: float
    direct_io: bool
    verified: bool
    scattered: bool
    throttle_bytes_per_second: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How long an attach would take now: in the queue, then reading from `tier`; making tensors comes on top.

    `copy_s` is what the way from DRAM to the GPU takes, 0 for an attach in DRAM; most of it runs beside the reading.

    `is_measured` is False where a bandwidth is only assumed, because that tier was never read and is not throttled.
    """

    tier: Tier
    queue_s: float
    read_s: float
    copy_s: float
    total_s: float
    is_measured: bool
