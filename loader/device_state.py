"""What a daemon leaves to its successor about GPUs: how much of their memory clients still hold, and which.

The images themselves end with the daemon's context, so the successor can hand none of them out; but memory that a
client imported is not free before that client drops it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .peers import Holder


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLeaseRecord:
    """A session of a process attached an image of `bytes` of the device `count` times."""

    image_id: int
    device: str
    bytes: int
    holder: Holder
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """`next_image_id` is above every id that a client was ever told."""

    next_image_id: int
    leases: tuple[DeviceLeaseRecord, ...]


NO_DEVICES = DeviceState(next_image_id=1, leases=())
