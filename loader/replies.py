"""What the store daemon answers: each question with exactly one reply of its id, an attach with Progress before.

ArenaMapped carries one descriptor, the arena's, which cannot be written, and DeviceAttached one of memory on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from .layout import Extent
from .receipts import Estimate, LoadReceipt
from .requests import LeaseCount
from .store_status import ImageStatus, StoreStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """The client now holds a lease on the files that lie in the arena at `extents`."""

    id: int
    image_id: int
    arena_id: str
    extents: tuple[Extent, ...]
    receipt: LoadReceipt


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFile:
    """One file in an image's memory on a GPU, header included. `file_name` is its real path, for messages."""

    file_name: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAttached:
    """The client now holds a lease; the descriptor of `memory_bytes` of the GPU comes with the frame."""

    id: int
    image_id: int
    device: str
    memory_bytes: int
    files: tuple[DeviceFile, ...]
    receipt: LoadReceipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetching:
    """The image is loading or ready."""

    id: int
    image: ImageStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """The image is pinned, and loading or ready."""

    id: int
    image: ImageStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpinned:
    """`images` of them were pinned."""

    id: int
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """`images` of them were dropped."""

    id: int
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """The answer to GetEstimate."""

    id: int
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The answer to GetStatus."""

    id: int
    status: StoreStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaMapped:
    """The descriptor of the arena's `bytes` comes with the frame; it can be mapped read-only."""

    id: int
    arena_id: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaimed:
    """These leases are the connection's now; none where they were of another arena, which is gone for the store."""

    id: int
    arena_id: str
    leases: tuple[LeaseCount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesReclaimed:
    """These leases are the connection's now."""

    id: int
    leases: tuple[LeaseCount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the load that an attach waits for has come, and what the loads before it have left to read."""

    id: int
    bytes_done: int
    bytes_total: int
    bytes_ahead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The request failed with the class `error` of errors.py. Id 0 answers what had no readable id."""

    id: int
    error: str
    message: str


Answer = (
    Attached
    | DeviceAttached
    | Prefetching
    | Pinned
    | Unpinned
    | Evicted
    | Estimated
    | Status
    | ArenaMapped
    | Reclaimed
    | DevicesReclaimed
)
Reply = Answer | Progress | Failed
