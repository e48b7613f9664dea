"""What a daemon leaves to its successor: which images lie where, and which processes hold leases on them.

The daemon saves it before it acknowledges a lease and before it lets anything overwrite an image that was in it. Images
that are loading or moving are not in it: after a crash their bytes would be worth nothing. But where loads write is,
since their reads may outlive the daemon.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from . import codec
from .checkpoint import Checkpoint
from .device_state import NO_DEVICES, DeviceState
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
    """Images in the order of their last use, the one used longest ago first; `in_flight` is where loads write."""

    arena_id: str
    next_image_id: int
    images: tuple[ImageRecord, ...]
    leases: tuple[LeaseRecord, ...]
    in_flight: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonState:
    """All that one daemon leaves to the next."""

    store: StoreState
    devices: DeviceState


class StateEncoder:
    """Turns states into bytes, quickly where most images are those of the last one."""

    def __init__(self) -> None:
        self._texts: dict[int, tuple[ImageRecord, str]] = {}

    def encode(self, state: DaemonState) -> bytes:
        self._texts = {image.id: self._text_of(image) for image in state.store.images}
        without_images = replace(state, store=replace(state.store, images=()))
        rest = codec.to_json(DaemonState.__name__, without_images).decode()
        images = ",".join(text for _, text in self._texts.values())
        return rest.replace(_NO_IMAGES, f'"images":[{images}]', 1).encode()

    def _text_of(self, image: ImageRecord) -> tuple[ImageRecord, str]:
        known = self._texts.get(image.id)
        return known if known and known[0] is image else (image, json.dumps(asdict(image), separators=(",", ":")))


def decode_state(payload: bytes) -> DaemonState:
    """Raises StoreProtocolError."""
    state: DaemonState = codec.from_json(payload, {DaemonState.__name__: DaemonState})
    return state


class Slots(Protocol):
    """Where a daemon's state outlives it. See state_slots.StateSlots."""

    def read(self) -> bytes | None:
        """The payload of the last complete write; None before the first."""

    def write(self, payload: bytes) -> None:
        """Returns once read() would give this payload, whatever happens to the process from now on."""


class Legacy:
    """The state in its slots. Each keeper saves its own half; what is written is always both."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._encoder = StateEncoder()
        self._store: StoreState | None = None
        self._devices = NO_DEVICES

    def read(self) -> DaemonState | None:
        """What a predecessor left, which stays in the slots until it is replaced. Raises StoreProtocolError."""
        payload = self._slots.read()
        if payload is None:
            return None
        state = decode_state(payload)
        self._store, self._devices = state.store, state.devices
        return state

    def save_store(self, state: StoreState) -> None:
        self._store = state
        self._write()

    def save_devices(self, state: DeviceState) -> None:
        self._devices = state
        self._write()

    def _write(self) -> None:
        if self._store is not None:  # else there is no lease yet: those on GPUs come after one in DRAM
            self._slots.write(self._encoder.encode(DaemonState(store=self._store, devices=self._devices)))


class MemorySlots:
    """Slots within one process: for a store without a successor, and for tests."""

    def __init__(self) -> None:
        self._payload: bytes | None = None

    def read(self) -> bytes | None:
        return self._payload

    def write(self, payload: bytes) -> None:
        self._payload = payload
