"""The store's threads that do what blocks: loads, and moves within the arena.

Each reports to the server's loop, which owns everything else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from . import _core
from .cache import Image
from .checkpoint import Checkpoint
from .effects import LoadResult
from .errors import LoaderError, StoreCancelled, StoreError
from .holes import Move
from .layout import Extent
from .thread_pool import ThreadPool

log = logging.getLogger("serverless_triton.store")

# Loads of different devices, and paused ones, which hold on to their threads.
MAX_LOADS = 64


class Loader(Protocol):
    """Fills an image's extents; several threads at once. See loading.ImageLoader."""

    def load(
        self,
        checkpoint: Checkpoint,
        extents: Sequence[Extent],
        job: _core.ReadJob,
        sink: _core.ChunkSink | None = None,
    ) -> LoadResult:
        """Tells the sink of every chunk. Raises LoaderError; writes nothing to the extents after it returned."""


class Reports(Protocol):
    """What the threads tell. Each is called on the loop."""

    def on_loaded(self, image: Image, result: LoadResult) -> None: ...

    def on_failed(self, image: Image, error: LoaderError) -> None: ...

    def on_moved(self) -> None: ...

    def on_broken(self, error: BaseException) -> None:
        """The arena's content can no longer be relied on."""


# Around the reading of a checkpoint: who wants its chunks at once, if anybody does.
Streaming = Callable[[Checkpoint], AbstractContextManager[_core.ChunkSink | None]]


class Work:
    """Threads over one arena. All but the work itself happens on the loop; `post` has a function called there."""

    def __init__(
        self,
        arena: _core.Arena,
        loader: Loader,
        reports: Reports,
        post: Callable[[Callable[[], None]], None],
        streaming: Streaming,
    ) -> None:
        self._arena = arena
        self._loader = loader
        self._streaming = streaming
        self._reports = reports
        self._post = post
        self._jobs: dict[int, _core.ReadJob] = {}
        self._loads = ThreadPool(MAX_LOADS, "store-load")
        self._moves = ThreadPool(1, "store-move")
        self._moving = _core.ReadJob()

    @property
    def is_loading(self) -> bool:
        return bool(self._jobs)

    def start_load(self, image: Image) -> None:
        job = self._jobs[image.id] = _core.ReadJob()
        log.info("load started path=%s bytes=%d", image.checkpoint.path, image.checkpoint.total_bytes)
        self._loads.submit(self._load, image, image.extents, job)

    def cancel_load(self, image: Image) -> None:
        self._jobs[image.id].cancel()

    def pause_load(self, image: Image) -> None:
        log.info("load paused path=%s", image.checkpoint.path)
        self._jobs[image.id].pause()

    def resume_load(self, image: Image) -> None:
        log.info("load resumed path=%s", image.checkpoint.path)
        self._jobs[image.id].resume()

    def read_bytes(self, image: Image) -> int:
        job = self._jobs.get(image.id)
        return job.bytes_done if job else 0

    def start_moves(self, moves: Sequence[Move]) -> None:
        log.info("compacting moves=%d bytes=%d", len(moves), sum(move.length for move in moves))
        self._moves.submit(self._move, moves)

    def close(self, deadline_s: float) -> None:
        """Cancels what runs and waits for it, until `deadline_s` of time.monotonic() at most."""
        for job in (*self._jobs.values(), self._moving):
            job.cancel()
        running = self._loads.close(deadline_s) + self._moves.close(deadline_s)
        if running:
            log.warning("not waiting any longer for what blocks: %d loads or moves still run", running)

    def _load(self, image: Image, extents: Sequence[Extent], job: _core.ReadJob) -> None:
        path = image.checkpoint.path
        try:
            with self._streaming(image.checkpoint) as sink:
                result = self._loader.load(image.checkpoint, extents, job, sink)
        except LoaderError as error:
            log.warning("load failed path=%s error=%s: %s", path, type(error).__name__, error)
            self._post(partial(self._ended, image, partial(self._reports.on_failed, image, error)))
        except Exception as error:
            # A bug of ours must not silence the loader: the waiters learn of it and the next load runs.
            log.exception("load crashed path=%s", path)
            crash = StoreError(f"loading {path} failed: {error!r}")
            self._post(partial(self._ended, image, partial(self._reports.on_failed, image, crash)))
        else:
            log.info("load finished path=%s tier=%s verified=%s", path, result.tier, result.verified)
            self._post(partial(self._ended, image, partial(self._reports.on_loaded, image, result)))

    def _ended(self, image: Image, report: Callable[[], None]) -> None:
        del self._jobs[image.id]
        report()

    def _move(self, moves: Sequence[Move]) -> None:
        try:
            for move in moves:
                self._arena.move(move.source, move.target, move.length, self._moving)
        except StoreCancelled:
            return  # close() was called: nobody listens any more
        except Exception as error:
            log.exception("compaction crashed")
            self._post(partial(self._reports.on_broken, error))
        else:
            self._post(self._reports.on_moved)
