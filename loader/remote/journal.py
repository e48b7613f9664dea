"""Which chunks of a partial cache entry are on the disk, with the hash of each: one line a chunk. Pure.

Lines are appended after their chunks were flushed to the disk. A line that a crash cut off, and everything after it, is
as if it had not been written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_LINE = re.compile(rb"([0-9]{1,7}) ([0-9]{1,9}) ([0-9a-f]{32})")


class ChunkId(NamedTuple):
    """The `number`-th chunk of the `file`-th file."""

    file: int
    number: int


def render_lines(chunks: Iterable[tuple[ChunkId, str]]) -> bytes:
    return b"".join(f"{chunk.file} {chunk.number} {digest}\n".encode() for chunk, digest in chunks)


def parse_journal(content: bytes) -> Mapping[ChunkId, str]:
    """The digests by chunk, up to the first line that is not whole."""
    digests = {}
    for line in content.split(b"\n")[:-1]:
        found = _LINE.fullmatch(line)
        if found is None:
            break
        digests[ChunkId(int(found[1]), int(found[2]))] = found[3].decode()
    return digests
