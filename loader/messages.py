"""What clients and the store daemon say to each other over the store's unix socket.

A frame is a u32 big-endian length and that many bytes of JSON (link.py). A client sends requests, each with an `id` of
its choice; the store answers each with exactly one reply of that id, except Cancel, Release and ReleaseDevice,
which have none; an attach may have Progress before. The reply ArenaMapped carries one descriptor, the arena's, which
cannot be written, and DeviceAttached one of memory on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from . import codec
from .layout import Extent

Tier = Literal["remote", "ssd", "page_cache", "dram", "gpu"]
State = Literal["empty", "loading", "ready", "evicting"]
DeviceImageState = Literal["waiting", "allocating", "loading", "copying", "ready", "evicting", "held"]


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
    """The copies of remote checkpoints; `capacity_bytes` is 0 where none are kept. `entries` are complete copies.

    `problem` says why something was not cached lately, "" if nothing was amiss.
    """

    capacity_bytes: int
    used_bytes: int
    entries: int
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Lease the checkpoint's image, loading it first if need be; `progress` asks for notices while it is loaded.

    `session` names the client across its connections, so that it can reclaim the lease.
    """

    id: int
    path: str
    session: str
    progress: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachDevice:
    """Lease the checkpoint's image on a GPU ("cuda:0"), bringing it there first if need be; otherwise as Attach."""

    id: int
    path: str
    device: str
    session: str
    progress: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimDevices:
    """As Reclaim, for images on GPUs."""

    id: int
    session: str
    leases: tuple[LeaseCount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseDevice:
    """Give one lease on an image on a GPU back."""

    image_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MapArena:
    """Ask for the arena's descriptor."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseCount:
    """`count` attachments of one image."""

    image_id: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """Take over the leases that this session of this process got over a connection that is gone.

    They are of arena `arena_id`, and all that the client still has: others of the session end.
    """

    id: int
    arena_id: str
    session: str
    leases: tuple[LeaseCount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetch:
    """Load the checkpoint without a lease; answered once it is queued."""

    id: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evict:
    """Drop the images of a path; answered once their memory is free."""

    id: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Load the checkpoint without a lease and keep it until Unpin; answered once it is queued."""

    id: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpin:
    """Let the images of a path go again when their room is needed."""

    id: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GetEstimate:
    """Ask how long an attach would take now, on `device` ("" for one in DRAM); nothing is loaded."""

    id: int
    path: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GetStatus:
    """Ask for StoreStatus."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop waiting for the request of that id; it is answered with StoreCancelled, unless its answer is under way."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Give one lease on an image back."""

    image_id: int


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
class DevicesReclaimed:
    """These leases are the connection's now."""

    id: int
    leases: tuple[LeaseCount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the load that an attach waits for has come."""

    id: int
    bytes_done: int
    bytes_total: int


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
class Prefetching:
    """The image is loading or ready."""

    id: int
    image: ImageStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """`images` of them were dropped."""

    id: int
    images: int


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
class Failed:
    """The request failed with the class `error` of errors.py. Id 0 answers what had no readable id."""

    id: int
    error: str
    message: str


# The requests that name a checkpoint which has to be opened.
PathQuestion = Attach | AttachDevice | Prefetch | Pin | GetEstimate
Question = PathQuestion | Unpin | Evict | GetStatus | MapArena | Reclaim | ReclaimDevices
Request = Question | Cancel | Release | ReleaseDevice
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

_REQUESTS: dict[str, type] = {kind.__name__: kind for kind in get_args(Request)}
_REPLIES: dict[str, type] = {kind.__name__: kind for kind in get_args(Reply)}


def encode(message: Request | Reply) -> bytes:
    """One message as JSON bytes."""
    return codec.to_json(type(message).__name__, message)


def decode_request(payload: bytes) -> Request:
    """Raises StoreProtocolError."""
    request: Request = codec.from_json(payload, _REQUESTS)
    return request


def decode_reply(payload: bytes) -> Reply:
    """Raises StoreProtocolError."""
    reply: Reply = codec.from_json(payload, _REPLIES)
    return reply
