"""The images a store holds: where they lie, their states and leases, least recently used. Bookkeeping only.

An image is EMPTY from the first request for it, LOADING once it has its place in the arena, READY when its bytes are
there, and EVICTING while it is unwanted but still being moved. Leased and pinned images are never evicted, leased ones
never moved.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate, count

from .arena_map import ArenaMap, Pieces, extent_bytes
from .checkpoint import Checkpoint, CheckpointFile
from .compaction import compact
from .errors import StoreFull
from .holes import Move
from .layout import Extent, Piece
from .searches import first_that
from .state import ImageRecord
from .state_room import described_bytes, most_pieces, record_bytes

ImageKey = tuple[CheckpointFile, ...]


class ImageState(Enum):
    """The life of an image, in this order."""

    EMPTY = "empty"
    LOADING = "loading"
    READY = "ready"
    EVICTING = "evicting"


@dataclass(slots=True, kw_only=True)
class Image:
    """One version of one checkpoint.

    `files` are the pieces of each file, none while EMPTY. `leases` counts attachments by client; `verified` says
    whether every byte was compared with its hash when it was read, `pinned` whether it stays without a lease, `moving`
    whether its bytes are on their way to another place. `described_bytes` is the length of the checkpoint's record.
    """

    id: int
    checkpoint: Checkpoint
    described_bytes: int
    files: tuple[Pieces, ...] = ()
    state: ImageState = ImageState.EMPTY
    leases: Counter[int] = field(default_factory=Counter)
    verified: bool = False
    pinned: bool = False
    moving: bool = False
    last_used: int = 0
    _record: ImageRecord | None = None

    @property
    def key(self) -> ImageKey:
        return self.checkpoint.files

    @property
    def file_bytes(self) -> list[int]:
        return [file.bytes for file in self.checkpoint.files]

    @property
    def bytes(self) -> int:
        """What it takes of the arena, or would if all its files were contiguous."""
        return sum(piece.length for piece in self.pieces) or sum(map(extent_bytes, self.file_bytes))

    @property
    def pieces(self) -> Iterator[Piece]:
        return (piece for file in self.files for piece in file)

    @property
    def extents(self) -> tuple[Extent, ...]:
        placed = zip(self.checkpoint.files, self.files, strict=True)
        return tuple(Extent(file_name=file.real_path, bytes=file.bytes, pieces=pieces) for file, pieces in placed)

    @property
    def record(self) -> ImageRecord:
        """What a successor may know of it; the same object for as long as that is true."""
        known = self._record
        if known is None or (known.files, known.verified, known.pinned) != (self.files, self.verified, self.pinned):
            self._record = known = ImageRecord(
                id=self.id, checkpoint=self.checkpoint, files=self.files, verified=self.verified, pinned=self.pinned
            )
        return known

    @property
    def record_bytes(self) -> int:
        """At most what it takes, or would once it has its place, of the state that a successor finds."""
        pieces = sum(map(len, self.files)) or most_pieces(self.file_bytes)
        return record_bytes(self.described_bytes, len(self.checkpoint.files), pieces)

    @property
    def is_scattered(self) -> bool:
        return any(len(file) > 1 for file in self.files)


class ImageCache:
    """All images of one store in one arena of `arena_bytes`, with `records_bytes` to tell a successor of them."""

    def __init__(self, arena_bytes: int, records_bytes: int = sys.maxsize) -> None:
        self._map = ArenaMap(arena_bytes)
        self._records_bytes = records_bytes
        self._images: dict[int, Image] = {}
        self._next_id = 1
        self._uses = count(1)

    @property
    def map(self) -> ArenaMap:
        """To look at."""
        return self._map

    @property
    def next_id(self) -> int:
        return self._next_id

    @property
    def images(self) -> list[Image]:
        """All images, oldest first."""
        return list(self._images.values())

    @property
    def leased_bytes(self) -> int:
        return sum(image.bytes for image in self._images.values() if image.leases)

    def find(self, key: ImageKey) -> Image | None:
        """The image of exactly these files that is not on its way out."""
        usable = (image for image in self._images.values() if image.state is not ImageState.EVICTING)
        return next((image for image in usable if image.key == key), None)

    def at_path(self, path: str) -> list[Image]:
        """The images of every version of a checkpoint that are not on their way out."""
        images = (image for image in self._images.values() if image.state is not ImageState.EVICTING)
        return [image for image in images if image.checkpoint.path == path]

    def admit(self, checkpoint: Checkpoint) -> Image:
        """A new image, EMPTY. Raises StoreFull where it could not fit into an empty store."""
        image = self._image_of(checkpoint)
        self._images[image.id] = image
        self._next_id += 1
        return image

    def check_room(self, checkpoint: Checkpoint) -> None:
        """Raises StoreFull where a load of this checkpoint would fail for want of room now."""
        self.victims_for(self._image_of(checkpoint))

    def victims_for(self, image: Image, leaving: Sequence[Image] = ()) -> list[Image]:
        """Which images must go, least recently used first, so that place() succeeds.

        Those already going, and those `leaving`, count as gone. Raises StoreFull where leased, pinned and loading
        images leave too little.
        """
        candidates = self._by_use(filter(is_evictable, self._images.values()))
        going = [*self._in_state(ImageState.EVICTING), *leaving]
        free = self._map.without({piece for image in going for piece in image.pieces})
        freed_bytes = list(accumulate((victim.bytes for victim in candidates), initial=free.free_bytes))
        free_records = self._records_bytes - self._recorded_bytes({image.id for image in going})
        freed_records = list(accumulate((victim.record_bytes for victim in candidates), initial=free_records))
        if freed_records[-1] < image.record_bytes:
            raise self._full_of_records(image)
        enough = max(bisect_left(freed_bytes, image.bytes), bisect_left(freed_records, image.record_bytes))
        count = first_that(enough, len(candidates), lambda count: self._would_fit(free, image, candidates[:count]))
        if count is None:
            raise self._full(image)
        return candidates[:count]

    def place(self, image: Image) -> tuple[Move, ...]:
        """Gives an EMPTY image its pieces; returns what has to be moved, in order, before they may be written.

        Nothing may be moving. Images that are to be moved have their new pieces at once, and end_moves() ends it.
        """
        assert image.state is ImageState.EMPTY
        moves: tuple[Move, ...] = ()
        files = self._map.allocate(image.file_bytes)
        if files is None and (plan := compact(self._map, image.file_bytes, self._movable_pieces())):
            files, moves = list(plan.files), plan.moves
            self._begin_moves(moves)
        files = files or self._map.scatter(image.file_bytes)
        assert files is not None, "victims_for() promised that it would fit"
        image.files, image.state = tuple(files), ImageState.LOADING
        return moves

    def end_moves(self) -> list[Image]:
        """All moves are done; returns the images that were moved."""
        moved = [image for image in self._images.values() if image.moving]
        for image in moved:
            image.moving = False
        return moved

    def ready(self, image: Image, *, verified: bool) -> None:
        assert image.state is ImageState.LOADING
        image.state = ImageState.READY
        image.verified = verified
        self._touch(image)

    def empty(self, image: Image) -> None:
        """The load came to nothing: the image gives its pieces back."""
        assert image.state is ImageState.LOADING
        self._map.free(image.pieces)
        image.files, image.state = (), ImageState.EMPTY

    def lease(self, image: Image, client: int) -> None:
        assert image.state is ImageState.READY
        assert not image.moving
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

    def begin_eviction(self, image: Image) -> None:
        assert is_evictable(image)
        image.state = ImageState.EVICTING

    def forget(self, image: Image) -> None:
        """The image is gone; its pieces are free."""
        assert not image.leases
        assert not image.moving
        self._map.free(image.pieces)
        del self._images[image.id]

    def records(self) -> tuple[ImageRecord, ...]:
        """What a successor may rely on: images that are complete and stay where they are, least recently used first."""
        return tuple(image.record for image in self._by_use(self._in_state(ImageState.READY)) if not image.moving)

    def adopt(self, record: ImageRecord) -> None:
        """An image that a predecessor left, READY. Raises ValueError where its place is taken."""
        image = Image(
            id=record.id,
            checkpoint=record.checkpoint,
            described_bytes=described_bytes(record.checkpoint),
            files=record.files,
            state=ImageState.READY,
            verified=record.verified,
            pinned=record.pinned,
            last_used=next(self._uses),
        )
        for piece in image.pieces:
            self._map.claim(piece)
        self._images[image.id] = image

    def adopt_next_id(self, next_id: int) -> None:
        """A predecessor gave the ids below to images that clients may still speak of."""
        self._next_id = max(self._next_id, next_id)

    def adopt_lease(self, image_id: int, client: int, leases: int) -> None:
        """Attachments that a predecessor had handed out."""
        if image_id in self._images:
            self._images[image_id].leases[client] += leases

    def _image_of(self, checkpoint: Checkpoint) -> Image:
        image = Image(
            id=self._next_id,
            checkpoint=checkpoint,
            described_bytes=described_bytes(checkpoint),
            last_used=next(self._uses),
        )
        if image.bytes > self._map.bytes:
            raise StoreFull(
                f"{checkpoint.path} needs {image.bytes} bytes and the store may use {self._map.bytes} in all; "
                "raise its DRAM budget"
            )
        return image

    def _recorded_bytes(self, without: Collection[int]) -> int:
        placed = (image for image in self._images.values() if image.files and image.id not in without)
        return sum(image.record_bytes for image in placed)

    def _would_fit(self, free: ArenaMap, image: Image, victims: list[Image]) -> bool:
        gone = {piece for victim in victims for piece in victim.pieces}
        arena = free.without(gone)
        # The cheap question first: what can be scattered fits, even if place() then finds something better.
        if arena.copy().scatter(image.file_bytes) is not None:
            return True
        return compact(arena, image.file_bytes, self._movable_pieces() - gone) is not None

    def _movable_pieces(self) -> set[Piece]:
        unleased = (image for image in self._in_state(ImageState.READY) if not image.leases)
        return {piece for image in unleased for piece in image.pieces}

    def _begin_moves(self, moves: tuple[Move, ...]) -> None:
        places = {piece: image for image in self._images.values() for piece in image.pieces}
        for move in moves:
            before = Piece(offset=move.source, length=move.length)
            after = Piece(offset=move.target, length=move.length)
            image = places[after] = places.pop(before)
            image.files = tuple(tuple(after if piece == before else piece for piece in file) for file in image.files)
            image.moving = True

    def _in_state(self, state: ImageState) -> list[Image]:
        return [image for image in self._images.values() if image.state is state]

    @staticmethod
    def _by_use(images: Iterable[Image]) -> list[Image]:
        return sorted(images, key=lambda image: image.last_used)

    def _touch(self, image: Image) -> None:
        image.last_used = next(self._uses)

    def _full(self, image: Image) -> StoreFull:
        kept_bytes = sum(image.bytes for image in self._images.values() if image.leases or image.pinned)
        return StoreFull(
            f"{image.checkpoint.path} needs {image.bytes} bytes; of {self._map.bytes} bytes {kept_bytes} are "
            "leased or pinned; stop a model that uses this store, unpin one, or raise its DRAM budget"
        )

    def _full_of_records(self, image: Image) -> StoreFull:
        kept = sum(bool(each.files) and not is_evictable(each) for each in self._images.values())
        return StoreFull(
            f"{image.checkpoint.path} has no room in the {self._records_bytes} bytes that the store has to describe "
            f"its images; {kept} are leased, pinned or loading: stop models that use this store, or unpin some"
        )


def is_evictable(image: Image) -> bool:
    """Whether nobody would notice: loaded, without a lease and not pinned."""
    return image.state is ImageState.READY and not image.leases and not image.pinned
