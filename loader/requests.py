"""What a client asks of the store daemon.

Each has an `id` of the client's choice, by which it is answered. Cancel, Release and ReleaseDevice have no answer.
"""

from __future__ import annotations

from dataclasses import dataclass


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
class Prefetch:
    """Load the checkpoint without a lease; answered once it is queued."""

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
class Evict:
    """Drop the images of a path; answered once their memory is free."""

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
class ReclaimDevices:
    """As Reclaim, for images on GPUs."""

    id: int
    session: str
    leases: tuple[LeaseCount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop waiting for the request of that id; it is answered with StoreCancelled, unless its answer is under way."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Give one lease on an image back."""

    image_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseDevice:
    """Give one lease on an image on a GPU back."""

    image_id: int


# The requests that name a checkpoint which has to be opened.
PathQuestion = Attach | AttachDevice | Prefetch | Pin | GetEstimate
Question = PathQuestion | Unpin | Evict | GetStatus | MapArena | Reclaim | ReclaimDevices
Request = Question | Cancel | Release | ReleaseDevice
