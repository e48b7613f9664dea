"""Writes the chunks of a load into the SSD cache behind it, on a thread of its own.

The load never waits for the disk: at most MAX_WAITING_BYTES lie here, and a chunk that finds no room is left out. The
entry is then complete after a later load, which reads from it what is there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

from .journal import ChunkId
from .partial_entry import PartialEntry
from .ssd_cache import SsdCache

log = logging.getLogger("serverless_triton.store")

MAX_WAITING_BYTES = 256 * 1024 * 1024


class _Task(NamedTuple):
    chunk: ChunkId
    buffers: Sequence[Any]
    digest: str
    bytes: int


class WriteBehind:
    """Fills one entry until close(), then completes it if every chunk came. offer() and close() are one thread's."""

    def __init__(self, cache: SsdCache, entry: PartialEntry, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self._cache = cache
        self._entry = entry
        self._max_waiting_bytes = max_waiting_bytes
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._problem = ""
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-cache-writer", daemon=True)
        self._thread.start()

    def offer(self, chunk: ChunkId, buffers: Sequence[Any], digest: str) -> bool:
        """Takes a chunk's bytes, which must not change any more; False where there is no room for them now."""
        size_bytes = sum(len(buffer) for buffer in buffers)
        with self._lock:
            if self._problem or self._waiting_bytes + size_bytes > self._max_waiting_bytes:
                return False
            self._waiting_bytes += size_bytes
        self._tasks.put(_Task(chunk, buffers, digest, size_bytes))
        return True

    def close(self, problem: str = "") -> None:
        """No more will come; with a `problem` what came is thrown away. Returns at once."""
        if problem:
            with self._lock:
                self._problem = self._problem or problem
        self._tasks.put(None)

    @property
    def is_writing(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Waits until what close() left to do is done."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        with self._entry:
            try:
                self._write_all()
                self._finish()
            except OSError as error:
                with self._lock:
                    self._problem = f"{error.strerror or error}; free some room, or give --cache-bytes less of the disk"
                self._cache.abandon(self._entry, self._problem)
            except Exception as error:
                # A bug of ours must not keep the entry in use for good.
                log.exception("cache writer crashed url=%s", self._entry.manifest.url)
                self._cache.abandon(self._entry, f"the writer failed: {error!r}")

    def _write_all(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._problem:
                return
            self._entry.write(task.chunk, task.buffers, task.digest)
            with self._lock:
                self._waiting_bytes -= task.bytes

    def _finish(self) -> None:
        if self._problem:
            self._cache.abandon(self._entry, self._problem)
            return
        self._entry.flush()
        if self._entry.is_complete:
            self._cache.complete(self._entry)
        else:
            self._cache.abandon(self._entry)
