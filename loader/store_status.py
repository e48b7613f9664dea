"""The store at one moment, as StoreStatus tells it: images, arena, queues, GPUs and the cache of remote checkpoints.

reports.py fills it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

State = Literal["empty", "loading", "ready", "evicting"]
DeviceImageState = Literal["waiting", "allocating", "loading", "copying", "ready", "evicting", "held"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStatus:
    """One image in the store; `bytes` is what it takes of the arena, `read_bytes` the progress of a load.

    `leases` counts attachments, `orphaned_leases` those of them whose process lives on without a connection. A `pinned`
    image stays without a lease.
    """

    path: str
    bytes: int
    state: State
    leases: int
    orphaned_leases: int
    read_bytes: int
    pinned: bool
    scattered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaStatus:
    """The arena. `kind` and `page_bytes` are what it really got; a byte counts as prefaulted once it was touched.

    `interleaved_nodes` are the memory nodes that its pages are spread over, none where the nearest gives them.
    `fragmentation` is 1 - largest free run / free bytes. `quarantined_bytes` are neither used nor free: where loads of
    a daemon that was killed wrote, for a minute.
    """

    kind: str
    page_bytes: int
    interleaved_nodes: tuple[int, ...]
    prefaulted_bytes: int
    free_bytes: int
    quarantined_bytes: int
    largest_free_bytes: int
    fragmentation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """The loads of one source device: the path that is read now ("" for none), and how many others there are.

    `bandwidth_bytes_per_second`: moving average of its past loads by tier, absent if none.
    """

    device: str
    running: str
    waiting_loads: int
    prefetches: int
    paused_loads: int
    unread_bytes: int
    bandwidth_bytes_per_second: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SsdCacheStatus:
    """The copies of remote checkpoints; `capacity_bytes` is 0 where none are kept. `entries` are complete copies, of
    the checkpoints at `urls`, by which several versions of one may lie here.

    `problem` says why something was not cached lately, "" if nothing was amiss.
    """

    capacity_bytes: int
    used_bytes: int
    entries: int
    urls: tuple[str, ...]
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceImageStatus:
    """One image on a GPU. A "held" one is what a daemon before left with clients: its path is not known any more."""

    path: str
    bytes: int
    state: DeviceImageState
    leases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """One GPU that was used. `held_bytes` are those of "held" images; they are in `used_bytes`, too.

    `attaches`, `copies`, `failed_copies`, `copied_bytes` and `copy_s` are sums since the daemon began: attaches that
    were answered, copies from DRAM and the time from the bytes' being there to the end. `copy_bytes_per_second` is a
    moving average of the copies of images that were in DRAM already, 0 if none.
    """

    device: str
    budget_bytes: int
    used_bytes: int
    leased_bytes: int
    held_bytes: int
    images: tuple[DeviceImageStatus, ...]
    attaches: int
    copies: int
    failed_copies: int
    copied_bytes: int
    copy_s: float
    copy_bytes_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    """The store at one moment. `dram_bytes` is the arena's size, `queue_depth` counts all loads that wait or run.

    `throttle_bytes_per_second` limits reads from the SSD, `remote_throttle_bytes_per_second` those from the network.
    `bandwidth_bytes_per_second`: moving average of past loads by tier over all devices, absent if none.
    """

    images: tuple[ImageStatus, ...]
    arena: ArenaStatus
    queues: tuple[QueueStatus, ...]
    devices: tuple[DeviceStatus, ...]
    dram_bytes: int
    used_bytes: int
    leased_bytes: int
    queue_depth: int
    throttle_bytes_per_second: int
    remote_throttle_bytes_per_second: int
    bandwidth_bytes_per_second: Mapping[str, float]
    ssd_cache: SsdCacheStatus
