"""Memory that reads of a killed daemon may still be writing to, kept from use until they have surely ended.

A read through io_uring does not hold its process back from ending: the kernel gives the ring up afterwards, and what
the device was told to read still arrives. Pure bookkeeping; the server says when the time is over.
"""

from __future__ import annotations

from collections.abc import Iterable

from .arena_map import ArenaMap
from .layout import Piece

# Longer than a block device may take for a request before the kernel gives it up: 30 s for SCSI and NVMe
# (/sys/block/*/queue/io_timeout), and again as much for the reset that follows.
QUARANTINE_S = 60.0


class Quarantine:
    """The pieces of the loads that ran when the predecessor died, or when its own did."""

    def __init__(self, arena: ArenaMap) -> None:
        self._arena = arena
        self._pieces: tuple[Piece, ...] = ()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return self._pieces

    @property
    def bytes(self) -> int:
        return sum(piece.length for piece in self._pieces)

    def begin(self, pieces: Iterable[Piece]) -> None:
        """Takes free pieces of the arena."""
        self._pieces = tuple(pieces)
        for piece in self._pieces:
            self._arena.claim(piece)

    def end(self) -> None:
        """They are free again."""
        self._arena.free(self._pieces)
        self._pieces = ()
