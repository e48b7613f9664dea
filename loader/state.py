"""What a daemon leaves to its successor: which images lie where, and which processes hold leases on them.

The daemon saves it before it acknowledges a lease and before it lets anything overwrite an image that was in it. Images
that are loading or moving are not in it: after a crash their bytes would be worth nothing. But where loads write is,
since their reads may outlive the daemon.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Generic, Protocol, TypeVar

from . import codec
from .checkpoint import Checkpoint
from .device_state import NO_DEVICES, DeviceState
from .errors import StoreFull
from .layout import Piece
from .peers import Holder
from .state_room import StateRoom

_NEITHER = '"images":[],"leases":[]'


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
    """A session of a process attached an image `count` times over one connection."""

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


_Record = TypeVar("_Record", ImageRecord, LeaseRecord)


class _Texts(Generic[_Record]):
    """The JSON of the records of one state, kept for those that are the same objects in the next."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[_Record, str]] = {}

    def joined(self, records: Iterable[_Record]) -> str:
        known = self._known
        # No other object has the id of one that is kept.
        self._known = {id(record): known.get(id(record)) or (record, _json(asdict(record))) for record in records}
        return ",".join([text for _, text in self._known.values()])


class StateEncoder:
    """Turns states into bytes, quickly where most images and leases are those of the last one."""

    def __init__(self, leases_bytes: int = sys.maxsize) -> None:
        """`leases_bytes` is the room for leases, those on GPUs included."""
        self._leases_bytes = leases_bytes
        self._images: _Texts[ImageRecord] = _Texts()
        self._leases: _Texts[LeaseRecord] = _Texts()
        self._devices, self._devices_text = NO_DEVICES, _json(asdict(NO_DEVICES))

    def encode(self, state: DaemonState) -> bytes:
        """Raises StoreFull where the leases do not fit."""
        if state.devices is not self._devices:
            self._devices, self._devices_text = state.devices, _json(asdict(state.devices))
        leases = self._leases.joined(state.store.leases)
        self._check_room(len(leases) + len(self._devices_text))
        images = self._images.joined(state.store.images)
        before, _, after = _json(asdict(replace(state.store, images=(), leases=()))).partition(_NEITHER)
        store = f'{before}"images":[{images}],"leases":[{leases}]{after}'
        return f'{{"kind":"{DaemonState.__name__}","store":{store},"devices":{self._devices_text}}}'.encode()

    def _check_room(self, leases_bytes: int) -> None:
        if leases_bytes > self._leases_bytes:
            raise StoreFull(
                f"the leases on this store would take {leases_bytes} bytes of its state, which has room for "
                f"{self._leases_bytes}; close clients, or release attachments that are not needed"
            )


def _json(content: dict[str, object]) -> str:
    return json.dumps(content, separators=(",", ":"))


def decode_state(payload: bytes) -> DaemonState:
    """Raises StoreProtocolError."""
    state: DaemonState = codec.from_json(payload, {DaemonState.__name__: DaemonState})
    return state


class Slots(Protocol):
    """Where a daemon's state outlives it. See state_slots.StateSlots."""

    @property
    def room_bytes(self) -> int:
        """The longest payload that can be written."""

    def read(self) -> bytes | None:
        """The payload of the last complete write; None before the first."""

    def write(self, payload: bytes) -> None:
        """Returns once read() would give this payload, whatever happens to the process from now on."""


class Legacy:
    """The state in its slots. Each keeper saves its own half; what is written is always both."""

    def __init__(self, slots: Slots) -> None:
        self.room = StateRoom.within(slots.room_bytes)
        self._slots = slots
        self._encoder = StateEncoder(self.room.leases_bytes)
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
        """Raises StoreFull where its leases have no room; what was saved before then stays."""
        self._write(state, self._devices)
        self._store = state

    def save_devices(self, state: DeviceState) -> None:
        """As save_store()."""
        if self._store is not None:  # else there is no lease yet: those on GPUs come after one in DRAM
            self._write(self._store, state)
        self._devices = state

    def _write(self, store: StoreState, devices: DeviceState) -> None:
        self._slots.write(self._encoder.encode(DaemonState(store=store, devices=devices)))


class MemorySlots:
    """Slots within one process: for a store without a successor, and for tests."""

    def __init__(self, room_bytes: int = sys.maxsize) -> None:
        self._room_bytes = room_bytes
        self._payload: bytes | None = None

    @property
    def room_bytes(self) -> int:
        return self._room_bytes

    def read(self) -> bytes | None:
        return self._payload

    def write(self, payload: bytes) -> None:
        assert len(payload) <= self._room_bytes
        self._payload = payload
