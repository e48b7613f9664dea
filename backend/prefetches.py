"""Checkpoints that the scheduler wants in DRAM before anybody asks for them: brought, dropped, kept.

The store reads them behind every load that somebody waits for. It answers a prefetch as soon as that is queued, so what
becomes of it is seen by asking; a checkpoint that several callers want is brought once, as long as one of them waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from serverless_triton.loader.client import Store
from serverless_triton.loader.errors import (
    CheckpointError,
    ImageLeased,
    ImagePinned,
    LoaderError,
    StoreCancelled,
    StoreFull,
)
from serverless_triton.loader.store_status import ImageStatus

T = TypeVar("T")

STORE_TIMEOUT_S = 30.0
ASK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetched:
    """A checkpoint is in DRAM. `read_s` is how long that took from the request on, 0 where it was there."""

    bytes: int
    read_s: float


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[Prefetched]
    waiters: int = 0
    is_stopping: bool = False


class Prefetches:
    """Every method runs on the agent's loop, asks the store on a thread, and raises the loader's errors."""

    def __init__(
        self, store_socket: Path, *, ask_again_s: float = ASK_AGAIN_S, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """`on_change` is called when the store holds another checkpoint, or one less."""
        self._store_socket = store_socket
        self._ask_again_s = ask_again_s
        self._on_change = on_change
        self._running: dict[str, _Running] = {}

    async def prefetch(self, checkpoint: str) -> Prefetched:
        """Returns when the checkpoint is in DRAM. Who is cancelled and waited alone stops it."""
        one = await self._join(checkpoint)
        one.waiters += 1
        try:
            return await asyncio.shield(one.task)
        finally:
            one.waiters -= 1
            if not one.waiters and not one.task.done():
                one.is_stopping = True
                one.task.cancel()

    async def evict(self, checkpoint: str) -> int:
        """Drops a checkpoint; how many images that were. Raises ImageLeased, ImagePinned."""
        images = await _ask(self._store_socket, lambda store: store.evict(checkpoint))
        self._on_change()
        return images

    async def pin(self, checkpoint: str, *, pinned: bool) -> None:
        """Has it brought into DRAM to stay there, or lets it go when its room is needed."""
        await _ask(self._store_socket, lambda store: store.pin(checkpoint) if pinned else store.unpin(checkpoint))
        self._on_change()

    async def _join(self, checkpoint: str) -> _Running:
        """The prefetch of this checkpoint that goes on, or a new one once an earlier one has stopped."""
        while (one := self._running.get(checkpoint)) is not None and one.is_stopping:
            await asyncio.wait({one.task})
        if one is None:
            one = self._running[checkpoint] = _Running(asyncio.get_running_loop().create_task(self._bring(checkpoint)))
            one.task.add_done_callback(lambda task: self._forget(checkpoint, task))
        return one

    def _forget(self, checkpoint: str, task: asyncio.Task[Prefetched]) -> None:
        del self._running[checkpoint]
        if not task.cancelled() and task.exception() is None:
            self._on_change()

    async def _bring(self, checkpoint: str) -> Prefetched:
        began_s = time.monotonic()
        try:
            image = await _ask(self._store_socket, lambda store: store.prefetch(checkpoint))
            was_there = image.state == "ready"
            while not _is_ready(image):
                await asyncio.sleep(self._ask_again_s)
                image = await _ask(self._store_socket, partial(_image_at, image.path))
        except asyncio.CancelledError:
            await _ask(self._store_socket, lambda store: _stop(checkpoint, store))
            raise
        return Prefetched(bytes=image.bytes, read_s=0.0 if was_there else time.monotonic() - began_s)


async def _ask(socket: Path, question: Callable[[Store], T]) -> T:
    def ask() -> T:
        with Store(socket, timeout_s=STORE_TIMEOUT_S) as store:
            return question(store)

    return await asyncio.get_running_loop().run_in_executor(None, ask)


def _is_ready(image: ImageStatus) -> bool:
    return image.state == "ready"


def _image_at(path: str, store: Store) -> ImageStatus:
    """Raises StoreCancelled where the store has given it up."""
    images = [image for image in store.status().images if image.path == path]
    if not images:
        raise StoreCancelled(f"{path} is not in DRAM: its load failed, or somebody else stopped it; the store logs why")
    return next((image for image in images if not _is_ready(image)), images[0])


def _stop(checkpoint: str, store: Store) -> None:
    """What is there by now stays, and so does what an attach has been waiting for."""
    images = [image for image in store.status().images if image.path == checkpoint]
    if any(image.state in ("empty", "loading") for image in images):
        with suppress(ImageLeased, ImagePinned):
            store.evict(checkpoint)


def status_code_of(error: LoaderError | ValueError) -> str:
    """What a caller is told of it: a gRPC status name."""
    if isinstance(error, (CheckpointError, ValueError)):
        return "INVALID_ARGUMENT"
    if isinstance(error, (ImageLeased, ImagePinned)):
        return "ABORTED"
    return "RESOURCE_EXHAUSTED" if isinstance(error, StoreFull) else "UNAVAILABLE"
