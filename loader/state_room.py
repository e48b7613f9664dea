"""How the room for a daemon's state is divided, so that an image that was let in can always be written down. Pure.

What an image takes of it is counted at its most: its pieces may be moved, and how many it gets is known only once it
has its place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .arena_map import SCATTER_BYTES
from .checkpoint import Checkpoint

# The JSON around a checkpoint in its record, with numbers of 20 digits; of a file's list of pieces; of a piece.
_RECORD_BYTES = 128
_FILE_BYTES = 4
_PIECE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRoom:
    """The bytes that images, loading ones included, and leases may take.

    The rest is for where a killed predecessor's loads wrote, which is a piece for each of their files, mostly.
    """

    images_bytes: int
    leases_bytes: int

    @classmethod
    def within(cls, room_bytes: int) -> StateRoom:
        return cls(images_bytes=room_bytes * 12 // 16, leases_bytes=room_bytes * 3 // 16)


def described_bytes(checkpoint: Checkpoint) -> int:
    """What the checkpoint takes of its image's record."""
    return len(json.dumps(asdict(checkpoint), separators=(",", ":")))


def record_bytes(checkpoint_bytes: int, files: int, pieces: int) -> int:
    """At most what an image of so many files and pieces takes of the state, or its pieces alone while it loads."""
    return _RECORD_BYTES + checkpoint_bytes + files * _FILE_BYTES + pieces * _PIECE_BYTES


def most_pieces(file_bytes: Sequence[int]) -> int:
    """How many pieces files may be scattered over."""
    return sum(-(-max(size_bytes, 1) // SCATTER_BYTES) for size_bytes in file_bytes)
