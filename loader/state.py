"""What a daemon leaves to its successor: which images lie where, and which processes hold leases on them.

The daemon saves it before it acknowledges a lease and before it lets anything overwrite an image that was in it. Images
that are loading or moving are not in it: after a crash their bytes would be worth nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from . import codec
from .checkpoint import Checkpoint
from .layout import Piece
from .peers import Holder

_NO_IMAGES = '"images":[]'


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """A complete image; `files` are the pieces of each of the checkpoint's files, in their order."""

    id: int
    checkpoint: Checkpoint
    files: tuple[tuple[Piece, ...], ...]
    verified: bool
    pinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """A session of a process attached an image `count` times."""

    image_id: int
    holder: Holder
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """Images in the order of their last use, the one used longest ago first."""

    arena_id: str
    next_image_id: int
    images: tuple[ImageRecord, ...]
    leases: tuple[LeaseRecord, ...]


class StateEncoder:
    """Turns states into bytes, quickly where most images are those of the last one."""

    def __init__(self) -> None:
        self._texts: dict[int, tuple[ImageRecord, str]] = {}

    def encode(self, state: StoreState) -> bytes:
        self._texts = {image.id: self._text_of(image) for image in state.images}
        rest = codec.to_json(StoreState.__name__, replace(state, images=())).decode()
        images = ",".join(text for _, text in self._texts.values())
        return rest.replace(_NO_IMAGES, f'"images":[{images}]', 1).encode()

    def _text_of(self, image: ImageRecord) -> tuple[ImageRecord, str]:
        known = self._texts.get(image.id)
        return known if known and known[0] is image else (image, json.dumps(asdict(image), separators=(",", ":")))


def decode_state(payload: bytes) -> StoreState:
    """Raises StoreProtocolError."""
    state: StoreState = codec.from_json(payload, {StoreState.__name__: StoreState})
    return state


class Slots(Protocol):
    """Where a daemon's state outlives it. See state_slots.StateSlots."""

    def read(self) -> bytes | None:
        """The payload of the last complete write; None before the first."""

    def write(self, payload: bytes) -> None:
        """Returns once read() would give this payload, whatever happens to the process from now on."""


class MemorySlots:
    """Slots within one process: for a store without a successor, and for tests."""

    def __init__(self) -> None:
        self._payload: bytes | None = None

    def read(self) -> bytes | None:
        return self._payload

    def write(self, payload: bytes) -> None:
        self._payload = payload
