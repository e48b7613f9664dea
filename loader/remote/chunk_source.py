"""Brings single chunks into the arena: from what an earlier load left on the SSD, or by ranged reads.

A request that breaks is taken up where it broke; a chunk that differs from its hash is fetched once more as a whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..errors import CheckpointCorrupted
from .chunks import Chunk
from .failures import TransientFailure
from .journal import ChunkId
from .objects import RemoteObject, Version
from .partial_entry import PartialEntry
from .patience import Patience, unavailable
from .throttle import Throttle

TRIES_OF_A_CORRUPT_CHUNK = 2


class ArenaMemory(Protocol):
    """What a remote load needs of the arena."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

    def write(self, offset: int, buffer: Any) -> None: ...

    def hash(self, offset: int, length: int) -> str: ...


class ChunkSource:
    """The chunks of one load. `expected` has the digests of those files that have some."""

    def __init__(
        self,
        *,
        objects: Sequence[tuple[RemoteObject, Version]],
        arena: ArenaMemory,
        expected: Mapping[ChunkId, str],
        entry: PartialEntry | None,
        throttle: Throttle,
        patience: Patience,
    ) -> None:
        self._objects = objects
        self._arena = arena
        self._expected = expected
        self._entry = entry
        self._left_there = dict(entry.digests) if entry else {}
        self._throttle = throttle
        self._patience = patience

    def may_restore(self, chunk: Chunk) -> bool:
        """Whether the partial cache entry says that it has the chunk."""
        return chunk.id in self._left_there

    def restore(self, chunk: Chunk) -> bool:
        """Takes the chunk from the partial cache entry; False where that does not have it as it was written."""
        known = self._left_there.get(chunk.id)
        if self._entry is None or known is None:
            return False
        try:
            content = self._entry.read(chunk.id)
        except OSError:
            content = b""
        if len(content) == chunk.bytes and self._expected.get(chunk.id, known) == known:
            self._arena.write(chunk.offset, content)
            if self._arena.hash(chunk.offset, chunk.bytes) == known:
                self._entry.confirm(chunk.id)
                return True
        self._entry.forget(chunk.id)
        return False

    async def fetch(self, chunk: Chunk) -> str:
        """Reads the chunk into the arena and returns its digest.

        Raises CheckpointError, RemoteUnavailable.
        """
        for _ in range(TRIES_OF_A_CORRUPT_CHUNK):
            await self._read(chunk)
            digest = self._arena.hash(chunk.offset, chunk.bytes)
            if self._expected.get(chunk.id, digest) == digest:
                return digest
        url = self._objects[chunk.id.file][0].url
        raise CheckpointCorrupted(
            f"{url}: chunk {chunk.id.number} (bytes {chunk.begin} to {chunk.end}), read from the remote tier "
            f"{TRIES_OF_A_CORRUPT_CHUNK} times, does not match its hash; upload the file again, or renew its hashes"
        )

    async def _read(self, chunk: Chunk) -> None:
        remote, version = self._objects[chunk.id.file]
        done, failures = chunk.begin, 0
        while True:
            try:
                async for buffer in remote.read(done, chunk.end, version):
                    self._arena.write(chunk.offset + done - chunk.begin, buffer)
                    done += len(buffer)
                    await asyncio.sleep(self._throttle.take(len(buffer), time.monotonic()))
            except TransientFailure as failure:
                failures += 1
                pause_s = self._patience.next_delay_s(failures)
                if done < chunk.end and pause_s is None:
                    raise unavailable(remote.url, failure) from failure
                await asyncio.sleep(pause_s or 0.0)
            if done == chunk.end:
                self._patience.succeeded()
                return
