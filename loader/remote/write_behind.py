"""Writes the chunks of a load into the SSD cache behind it, on a thread of its own.

The load never waits for the disk, and nothing is held for it: a chunk is read from the arena when its turn comes, which
may be after the load. Should the image be gone or moved by then, the chunk's hash tells; it is left out, and the entry
is complete after a later load, which takes from it what is there.
"""

from __future__ import annotations

import logging
import threading
from queue import SimpleQueue
from typing import NamedTuple

from .. import _core
from .chunk_source import ArenaMemory
from .chunks import Chunk
from .partial_entry import PartialEntry
from .ssd_cache import SsdCache

log = logging.getLogger("serverless_triton.store")


class _Task(NamedTuple):
    chunk: Chunk
    digest: str


class WriteBehind:
    """Fills one entry until close(), then completes it if every chunk came. offer() and close() are one thread's."""

    def __init__(self, cache: SsdCache, entry: PartialEntry, arena: ArenaMemory) -> None:
        self.entry = entry
        self._cache = cache
        self._arena = arena
        self._problem = ""
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-cache-writer", daemon=True)
        self._thread.start()

    @property
    def is_writing(self) -> bool:
        return self._thread.is_alive()

    def offer(self, chunk: Chunk, digest: str) -> None:
        """The chunk, of a file of the entry, is in the arena."""
        assert self.entry.manifest.has(chunk.id.file, chunk.file), "a chunk of another checkpoint"
        self._tasks.put(_Task(chunk, digest))

    def close(self, problem: str = "") -> None:
        """No more will come, and nobody else uses the entry. With a `problem` what came is thrown away.

        Returns at once.
        """
        self._problem = problem
        self._tasks.put(None)

    def join(self, timeout_s: float) -> None:
        """Waits until what close() left to do is done."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        with self.entry:
            try:
                self._write_all()
                self._finish()
            except OSError as error:
                problem = f"{error.strerror or error}; free some room, or give --cache-bytes less of the disk"
                self._cache.abandon(self.entry, problem)
            except Exception as error:
                # A bug of ours must not keep the entry in use for good.
                log.exception("cache writer crashed url=%s", self.entry.manifest.url)
                self._cache.abandon(self.entry, f"the writer failed: {error!r}")

    def _write_all(self) -> None:
        while (task := self._tasks.get()) is not None and not self._problem:
            chunk = task.chunk
            content = bytes(memoryview(self._arena)[chunk.offset : chunk.offset + chunk.bytes])
            if _core.xxh3_128(content) == task.digest:
                self.entry.write(chunk.id, content, task.digest)

    def _finish(self) -> None:
        if self._problem:
            self._cache.abandon(self.entry, self._problem)
            return
        self.entry.flush()
        if self.entry.is_complete:
            self._cache.complete(self.entry)
        else:
            self._cache.abandon(self.entry)
