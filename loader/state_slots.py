"""A few megabytes that outlive a daemon: what it writes here, its successor reads, whenever it was killed.

Two slots in memory that the holder shares with every daemon it forks. A write goes to the slot that holds the older
state and counts once its checksum is right, so that the newer one is there until then.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

from . import _core
from .errors import StoreError

SLOT_BYTES = 16 << 20
# Sequence number, length, XXH3-128 of both and of the payload behind them.
_NUMBERS = struct.Struct("<QQ")
_DIGEST_BYTES = 16
HEADER_BYTES = _NUMBERS.size + _DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class _State:
    sequence: int
    slot: int
    payload: bytes


class StateSlots:
    """One process at a time may use it: the daemon that lives."""

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        """`memory` is all of both slots; zeroes are no state."""
        self._memory = memoryview(memory)
        self._slot_bytes = len(self._memory) // 2
        self._newest: _State | None = None

    @classmethod
    def create(cls, slot_bytes: int = SLOT_BYTES) -> StateSlots:
        """Memory that processes forked from this one share. What is never written costs nothing."""
        return cls(mmap.mmap(-1, 2 * slot_bytes))

    @property
    def room_bytes(self) -> int:
        """The longest payload that can be written."""
        return self._slot_bytes - HEADER_BYTES

    def write(self, payload: bytes) -> None:
        """Makes `payload` what read() returns. Raises StoreError where it is too long; the old state then stays."""
        if len(payload) > self.room_bytes:
            raise StoreError(
                f"the store's state takes {len(payload)} bytes and there is room for {self.room_bytes}; evict images "
                "or close clients"
            )
        newest = self._newest or self._find_newest()
        sequence, slot = (newest.sequence + 1, 1 - newest.slot) if newest else (1, 0)
        numbers = _NUMBERS.pack(sequence, len(payload))
        begin = slot * self._slot_bytes
        self._memory[begin + HEADER_BYTES :][: len(payload)] = payload
        self._memory[begin:][:HEADER_BYTES] = numbers + _digest(numbers, payload)
        self._newest = _State(sequence, slot, payload)

    def read(self) -> bytes | None:
        """What was written last and whole; None before the first write."""
        newest = self._find_newest()
        return newest.payload if newest else None

    def _find_newest(self) -> _State | None:
        states = [state for slot in (0, 1) if (state := self._state_in(slot))]
        return max(states, key=lambda state: state.sequence, default=None)

    def _state_in(self, slot: int) -> _State | None:
        memory = self._memory[slot * self._slot_bytes :][: self._slot_bytes]
        sequence, length = _NUMBERS.unpack_from(memory)
        if length > self._slot_bytes - HEADER_BYTES:
            return None
        payload = bytes(memory[HEADER_BYTES:][:length])
        if bytes(memory[_NUMBERS.size : HEADER_BYTES]) != _digest(bytes(memory[: _NUMBERS.size]), payload):
            return None
        return _State(sequence, slot, payload)


def _digest(numbers: bytes, payload: bytes) -> bytes:
    return bytes.fromhex(_core.xxh3_128(numbers + payload))
