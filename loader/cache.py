"""The images a store holds: states, leases, budget, least recently used. Bookkeeping only: no I/O, no clock, no locks.

An image is LOADING from the first request for it, takes its bytes out of the budget when its load starts, is READY when
they are in place, and EVICTING until they are given back. Leased and pinned images are never evicted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from itertools import count

from .checkpoint import Checkpoint, CheckpointFile
from .errors import StoreFull
from .layout import Layout, lay_out

ImageKey = tuple[CheckpointFile, ...]


class ImageState(Enum):
    """The life of an image, in this order."""

    LOADING = "loading"
    READY = "ready"
    EVICTING = "evicting"


@dataclass(slots=True, kw_only=True)
class Image:
    """One version of one checkpoint.

    `leases` counts attachments by client; `charged` says whether it holds budget, `verified` whether every byte was
    compared with its hash when it was read, `pinned` whether it stays without a lease.
    """

    id: int
    checkpoint: Checkpoint
    layout: Layout
    state: ImageState = ImageState.LOADING
    leases: Counter[int] = field(default_factory=Counter)
    charged: bool = False
    verified: bool = False
    pinned: bool = False
    last_used: int = 0

    @property
    def key(self) -> ImageKey:
        return self.checkpoint.files

    @property
    def bytes(self) -> int:
        return self.layout.bytes


class ImageCache:
    """All images of one store under one budget of `dram_bytes`."""

    def __init__(self, dram_bytes: int) -> None:
        self.dram_bytes = dram_bytes
        self._images: dict[int, Image] = {}
        self._ids = count(1)
        self._uses = count(1)

    @property
    def images(self) -> list[Image]:
        """All images, oldest first."""
        return list(self._images.values())

    @property
    def used_bytes(self) -> int:
        return sum(image.bytes for image in self._images.values() if image.charged)

    @property
    def leased_bytes(self) -> int:
        return sum(image.bytes for image in self._images.values() if image.leases)

    @property
    def kept_bytes(self) -> int:
        """What cannot be evicted: leased, pinned or both."""
        return sum(image.bytes for image in self._images.values() if image.leases or image.pinned)

    @property
    def free_bytes(self) -> int:
        return self.dram_bytes - self.used_bytes

    def get(self, image_id: int) -> Image:
        return self._images[image_id]

    def find(self, key: ImageKey) -> Image | None:
        """The image of exactly these files that is loading or ready."""
        usable = (image for image in self._images.values() if image.state is not ImageState.EVICTING)
        return next((image for image in usable if image.key == key), None)

    def at_path(self, path: str) -> list[Image]:
        """The images of every version of a checkpoint that are loading or ready."""
        images = (image for image in self._images.values() if image.state is not ImageState.EVICTING)
        return [image for image in images if image.checkpoint.path == path]

    def admit(self, checkpoint: Checkpoint) -> Image:
        """A new image in LOADING. Raises StoreFull where it could not fit into an empty store."""
        image = self._image_of(checkpoint)
        self._images[image.id] = image
        return image

    def check_room(self, checkpoint: Checkpoint) -> None:
        """Raises StoreFull where a load of this checkpoint would fail for want of room now."""
        self.victims_for(self._image_of(checkpoint))

    def victims_for(self, image: Image) -> list[Image]:
        """Which images must go, least recently used first, so that this one fits; those already going count as gone.

        Raises StoreFull where leased and pinned images leave too little.
        """
        missing = image.bytes - self.free_bytes - self._evicting_bytes()
        victims = []
        for candidate in sorted(filter(is_evictable, self._images.values()), key=lambda image: image.last_used):
            if missing <= 0:
                break
            victims.append(candidate)
            missing -= candidate.bytes
        if missing > 0:
            raise self._full(image)
        return victims

    def charge(self, image: Image) -> None:
        """The load begins: the bytes are taken from the budget."""
        assert image.bytes <= self.free_bytes
        image.charged = True

    def ready(self, image: Image, *, verified: bool) -> None:
        assert image.state is ImageState.LOADING
        assert image.charged
        image.state = ImageState.READY
        image.verified = verified
        self._touch(image)

    def lease(self, image: Image, client: int) -> None:
        assert image.state is ImageState.READY
        image.leases[client] += 1
        self._touch(image)

    def release(self, image_id: int, client: int) -> bool:
        """Ends one lease; False where the client holds none on that image."""
        image = self._images.get(image_id)
        if image is None or client not in image.leases:
            return False
        image.leases[client] -= 1
        image.leases += Counter()
        self._touch(image)
        return True

    def release_all(self, client: int) -> None:
        """Ends every lease of a client."""
        for image in self._images.values():
            if image.leases.pop(client, None):
                self._touch(image)

    def begin_eviction(self, image: Image) -> None:
        assert is_evictable(image)
        image.state = ImageState.EVICTING

    def forget(self, image: Image) -> None:
        """The image's memory is gone, or was never taken."""
        assert not image.leases
        del self._images[image.id]

    def _image_of(self, checkpoint: Checkpoint) -> Image:
        layout = lay_out(checkpoint.files)
        if layout.bytes > self.dram_bytes:
            raise StoreFull(
                f"{checkpoint.path} needs {layout.bytes} bytes and the store may use {self.dram_bytes} in all; "
                "raise its DRAM budget"
            )
        return Image(id=next(self._ids), checkpoint=checkpoint, layout=layout, last_used=next(self._uses))

    def _evicting_bytes(self) -> int:
        return sum(image.bytes for image in self._images.values() if image.state is ImageState.EVICTING)

    def _touch(self, image: Image) -> None:
        image.last_used = next(self._uses)

    def _full(self, image: Image) -> StoreFull:
        return StoreFull(
            f"{image.checkpoint.path} needs {image.bytes} bytes; of {self.dram_bytes} bytes {self.kept_bytes} are "
            "leased or pinned; stop a model that uses this store, unpin one, or raise its DRAM budget"
        )


def is_evictable(image: Image) -> bool:
    """Whether nobody would notice: loaded, without a lease and not pinned."""
    return image.state is ImageState.READY and not image.leases and not image.pinned
