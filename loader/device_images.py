"""The images a store keeps on GPUs: states, leases, a budget a device, least recently used. Bookkeeping only.

An image is WAITING until its device has room, ALLOCATING while it gets memory, LOADING until its bytes are in DRAM,
COPYING until they are on the device, then READY, and EVICTING while its memory is given back. HELD is what a daemon
before this one left with clients that still use it: nobody else can have it, but its memory is not free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import count

from .cache import ImageKey
from .checkpoint import Checkpoint
from .errors import StoreFull
from .layout import aligned
from .replies import DeviceFile

# What drivers allocate in, and what tensors may be aligned to.
GRANULE_BYTES = 2 << 20
FILE_ALIGNMENT_BYTES = 4096


class DeviceImageState(Enum):
    """The life of an image on a device, in this order; HELD stands apart."""

    WAITING = "waiting"
    ALLOCATING = "allocating"
    LOADING = "loading"
    COPYING = "copying"
    READY = "ready"
    EVICTING = "evicting"
    HELD = "held"


USABLE = frozenset(DeviceImageState) - {DeviceImageState.EVICTING, DeviceImageState.HELD}


@dataclass(slots=True, kw_only=True)
class DeviceImage:
    """One version of one checkpoint on one device; None where it is HELD. `leases` counts attachments by client."""

    id: int
    device: str
    checkpoint: Checkpoint | None
    bytes: int
    state: DeviceImageState = DeviceImageState.WAITING
    leases: Counter[int] = field(default_factory=Counter)
    verified: bool = False
    last_used: int = 0

    @property
    def path(self) -> str:
        return self.checkpoint.path if self.checkpoint else ""

    @property
    def is_charged(self) -> bool:
        return self.state is not DeviceImageState.WAITING

    @property
    def is_evictable(self) -> bool:
        return self.state is DeviceImageState.READY and not self.leases

    @property
    def files(self) -> tuple[DeviceFile, ...]:
        """Where each file lies in the image's memory."""
        assert self.checkpoint is not None
        files, offset = [], 0
        for file in self.checkpoint.files:
            files.append(DeviceFile(file_name=file.real_path, offset=offset, bytes=file.bytes))
            offset += aligned(file.bytes, FILE_ALIGNMENT_BYTES)
        return tuple(files)


class DeviceImages:
    """The images of all devices, each device with a budget of `budget_bytes`."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._images: dict[int, DeviceImage] = {}
        self._next_id = 1
        self._uses = count(1)

    @property
    def all(self) -> list[DeviceImage]:
        """Oldest first."""
        return list(self._images.values())

    @property
    def next_id(self) -> int:
        return self._next_id

    def on(self, device: str) -> list[DeviceImage]:
        return [image for image in self._images.values() if image.device == device]

    def get(self, image_id: int) -> DeviceImage | None:
        return self._images.get(image_id)

    def find(self, device: str, key: ImageKey) -> DeviceImage | None:
        """The image of exactly these files on that device, ready or on its way there."""
        usable = (image for image in self.on(device) if image.state in USABLE and image.checkpoint)
        return next((image for image in usable if image.checkpoint and image.checkpoint.files == key), None)

    def at_path(self, path: str) -> list[DeviceImage]:
        """Every version of a checkpoint, on every device."""
        return [image for image in self._images.values() if image.state in USABLE and image.path == path]

    def used_bytes(self, device: str) -> int:
        return sum(image.bytes for image in self.on(device) if image.is_charged)

    def admit(self, device: str, checkpoint: Checkpoint) -> DeviceImage:
        """A new image, WAITING. Raises StoreFull where it could not fit onto an empty device."""
        image = self._image_of(device, checkpoint)
        self._images[image.id] = image
        self._next_id += 1
        return image

    def check_room(self, device: str, checkpoint: Checkpoint) -> None:
        """Raises StoreFull where an attach of this checkpoint would fail for want of room now."""
        self.victims_for(self._image_of(device, checkpoint))

    def victims_for(self, image: DeviceImage) -> list[DeviceImage]:
        """Which images must go, least recently used first, so that this one fits; those already going count as gone.

        Raises StoreFull where what is used and on its way leaves too little.
        """
        neighbours = self.on(image.device)
        going = sum(each.bytes for each in neighbours if each.state is DeviceImageState.EVICTING)
        missing = image.bytes - (self.budget_bytes - self.used_bytes(image.device)) - going
        victims = []
        for candidate in sorted((each for each in neighbours if each.is_evictable), key=lambda each: each.last_used):
            if missing <= 0:
                break
            victims.append(candidate)
            missing -= candidate.bytes
        if missing > 0:
            raise self._full(image)
        return victims

    def fits(self, image: DeviceImage) -> bool:
        """Whether the room is there now."""
        return image.bytes <= self.budget_bytes - self.used_bytes(image.device)

    def lease(self, image: DeviceImage, client: int) -> None:
        assert image.state is DeviceImageState.READY
        image.leases[client] += 1
        self.touch(image)

    def release(self, image_id: int, client: int, leases: int = 1) -> None:
        """Ends leases, as many as the client has of those. What was HELD only for them is gone."""
        image = self._images.get(image_id)
        if image is None or client not in image.leases:
            return
        image.leases[client] -= min(leases, image.leases[client])
        image.leases += Counter()
        self.touch(image)
        if image.state is DeviceImageState.HELD and not image.leases:
            self.forget(image)

    def release_all(self, client: int) -> None:
        for image in self.all:
            self.release(image.id, client, image.leases[client])

    def pass_on(self, image_id: int, giver: int, taker: int, at_most: int) -> int:
        """Gives leases of one client to another; returns how many it had to give."""
        image = self._images.get(image_id)
        passed = min(at_most, image.leases[giver]) if image else 0
        if image is not None and passed > 0:
            image.leases[taker] += passed
            image.leases[giver] -= passed
            image.leases += Counter()
        return max(passed, 0)

    def is_leased_by(self, client: int) -> bool:
        return any(client in image.leases for image in self._images.values())

    def forget(self, image: DeviceImage) -> None:
        """Its memory is given back, or was never taken."""
        assert not image.leases
        del self._images[image.id]

    def touch(self, image: DeviceImage) -> None:
        image.last_used = next(self._uses)

    def adopt(self, image_id: int, device: str, size_bytes: int, leases: Iterable[tuple[int, int]]) -> None:
        """What a predecessor left with clients, by number and count."""
        self._images[image_id] = DeviceImage(
            id=image_id,
            device=device,
            checkpoint=None,
            bytes=size_bytes,
            state=DeviceImageState.HELD,
            leases=Counter(dict(leases)),
        )

    def adopt_next_id(self, next_id: int) -> None:
        """A predecessor gave the ids below to images that clients may still speak of."""
        self._next_id = max(self._next_id, next_id)

    def _image_of(self, device: str, checkpoint: Checkpoint) -> DeviceImage:
        size_bytes = sum(aligned(file.bytes, FILE_ALIGNMENT_BYTES) for file in checkpoint.files)
        image = DeviceImage(
            id=self._next_id,
            device=device,
            checkpoint=checkpoint,
            bytes=aligned(max(size_bytes, 1), GRANULE_BYTES),
            last_used=next(self._uses),
        )
        if image.bytes > self.budget_bytes:
            raise StoreFull(
                f"{checkpoint.path} needs {image.bytes} bytes of {device} and the store may use {self.budget_bytes} of "
                "it; raise its GPU budget"
            )
        return image

    def _full(self, image: DeviceImage) -> StoreFull:
        kept = sum(each.bytes for each in self.on(image.device) if each.is_charged and not each.is_evictable)
        return StoreFull(
            f"{image.path} needs {image.bytes} bytes of {image.device}; of {self.budget_bytes} bytes {kept} are leased "
            "or on their way; stop a model that uses this device, or raise the store's GPU budget"
        )
