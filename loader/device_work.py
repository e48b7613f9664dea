"""The store's memory on GPUs and the threads that fill it: one a device, so that devices don't wait for each other.

While a checkpoint that a device waits for is being read, its chunks are copied on at once; what was in DRAM already is
copied afterwards. Each piece of work reports to the server's loop, which owns everything else.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Protocol

from . import _core
from .cache import ImageKey
from .checkpoint import Checkpoint
from .device_images import DeviceImage
from .devices import device_of
from .errors import DeviceError, LoaderError
from .layout import Extent
from .thread_pool import ThreadPool

log = logging.getLogger("serverless_triton.store")


class DeviceReports(Protocol):
    """What the threads tell. Each is called on the loop."""

    def on_allocated(self, image: DeviceImage) -> None: ...

    def on_copied(self, image: DeviceImage) -> None: ...

    def on_device_failed(self, image: DeviceImage, error: LoaderError) -> None: ...

    def on_freed(self, image: DeviceImage) -> None: ...


class DeviceWork:
    """Threads over one arena. All but streaming() is called on the loop; `post` has a function called there."""

    def __init__(self, arena: _core.Arena, reports: DeviceReports, post: Callable[[Callable[[], None]], None]) -> None:
        self._arena = arena
        self._reports = reports
        self._post = post
        self._registered = _core.RegisteredMemory(arena)
        self._pools: dict[str, ThreadPool] = {}
        # Each keeps its context, which takes long to make. A device's own thread alone puts it there.
        self._gpus: dict[str, _core.GpuDevice] = {}
        self._job = _core.ReadJob()
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        # Guarded by the lock: what loading threads and device threads share.
        self._memories: dict[int, _core.DeviceMemory] = {}
        self._expected: dict[ImageKey, DeviceImage] = {}
        self._streams: dict[int, _core.GpuCopy] = {}

    def allocate(self, image: DeviceImage) -> None:
        self._submit(image, self._allocate)

    def expect(self, image: DeviceImage) -> None:
        """If the checkpoint is read from now on, its chunks are copied meanwhile; those read before do not count."""
        assert image.checkpoint is not None
        self._drop_stream(image)
        with self._lock:
            self._expected[image.checkpoint.files] = image

    def copy(self, image: DeviceImage, extents: Sequence[Extent]) -> None:
        """Copies what was not copied while it was read. The extents must stay until the report."""
        self._submit(image, partial(self._copy, extents=extents))

    def descriptor_of(self, image_id: int) -> int:
        """Of the image's memory, good until free()."""
        return self._descriptors[image_id]

    def free(self, image: DeviceImage) -> None:
        """The memory is back when nothing uses it any more, a read that still copies into it included."""
        if image.id in self._descriptors:
            os.close(self._descriptors.pop(image.id))
        self._submit(image, self._free)

    def close(self, deadline_s: float) -> None:
        """Cancels what runs and waits for it, until `deadline_s` of time.monotonic() at most."""
        self._job.cancel()
        running = sum([pool.close(deadline_s) for pool in self._pools.values()])
        if running:
            log.warning("not waiting any longer for a driver that blocks: %d copies still run", running)
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._gpus.clear()

    @contextmanager
    def streaming(self, checkpoint: Checkpoint) -> Iterator[_core.ChunkSink | None]:
        """Around reading a checkpoint: where its chunks should go, if a device waits for them. On any thread."""
        with self._lock:
            image = self._expected.pop(checkpoint.files, None)
        stream = self._stream_to(image) if image else None
        try:
            yield stream
        except BaseException:
            if image and stream:
                self._drop_stream(image)
            raise

    def _submit(self, image: DeviceImage, work: Callable[[DeviceImage], None]) -> None:
        # As many pools as there are GPUs: the device keeper lets no other name in.
        pool = self._pools.get(image.device)
        if pool is None:
            pool = self._pools[image.device] = ThreadPool(1, f"store-{image.device}")
        pool.submit(self._guarded, image, work)

    def _guarded(self, image: DeviceImage, work: Callable[[DeviceImage], None]) -> None:
        try:
            work(image)
        except LoaderError as error:
            log.warning("device failed device=%s path=%s error=%s", image.device, image.path, error)
            self._post(partial(self._reports.on_device_failed, image, error))
        except Exception as error:
            # A bug of ours must not silence the device: the waiters learn of it.
            log.exception("device work crashed device=%s path=%s", image.device, image.path)
            crash = DeviceError(f"bringing {image.path} onto {image.device} failed: {error!r}")
            self._post(partial(self._reports.on_device_failed, image, crash))

    def _allocate(self, image: DeviceImage) -> None:
        memory = _core.DeviceMemory.allocate(self._gpu(image.device), image.bytes)
        weakref.finalize(memory, self._post, partial(self._reports.on_freed, image)).atexit = False
        with self._lock:
            self._memories[image.id] = memory
        self._post(partial(self._reports.on_allocated, image))

    def _copy(self, image: DeviceImage, extents: Sequence[Extent]) -> None:
        assert image.checkpoint is not None
        with self._lock:
            self._expected.pop(image.checkpoint.files, None)
            stream = self._streams.pop(image.id, None)
        if stream is None or stream.copied_bytes < image.checkpoint.total_bytes:
            _end(stream)
            stream = self._copier_to(image)
            for index, extent in enumerate(extents):
                stream.copy(index, self._arena, _pieces_of(extent), self._job)
        stream.finish()
        self._post(partial(self._complete, image))

    def _gpu(self, name: str) -> _core.GpuDevice:
        if name not in self._gpus:
            self._gpus[name] = device_of(name)
        return self._gpus[name]

    def _complete(self, image: DeviceImage) -> None:
        with self._lock:
            memory = self._memories[image.id]
        try:
            self._descriptors[image.id] = memory.export_fd()
        except LoaderError as error:
            self._reports.on_device_failed(image, error)
            return
        log.info("on device device=%s path=%s bytes=%d", image.device, image.path, image.bytes)
        self._reports.on_copied(image)

    def _free(self, image: DeviceImage) -> None:
        with self._lock:
            if image.checkpoint is not None and self._expected.get(image.checkpoint.files) is image:
                del self._expected[image.checkpoint.files]
            # Before the stream, which keeps the memory: without memory no stream is registered any more.
            memory = self._memories.pop(image.id, None)
        self._drop_stream(image)
        if memory is None:  # allocating it had failed
            self._post(partial(self._reports.on_freed, image))

    def _stream_to(self, image: DeviceImage) -> _core.GpuCopy | None:
        try:
            stream = self._copier_to(image)
        except (KeyError, LoaderError):
            return None  # given up meanwhile, or what _copy() will say
        with self._lock:
            if image.id in self._memories:
                self._streams[image.id] = stream
                return stream
        _end(stream)  # given up while it was made
        return None

    def _copier_to(self, image: DeviceImage) -> _core.GpuCopy:
        with self._lock:
            memory = self._memories[image.id]
        return _core.GpuCopy(memory, [file.offset for file in image.files], self._registered)

    def _drop_stream(self, image: DeviceImage) -> None:
        with self._lock:
            stream = self._streams.pop(image.id, None)
        _end(stream)


def _end(stream: _core.GpuCopy | None) -> None:
    """Nothing is copied any more, and what was under way has arrived, when this returns."""
    if stream is not None:
        stream.cancel()
        with suppress(LoaderError):
            stream.finish()


def _pieces_of(extent: Extent) -> list[tuple[int, int]]:
    """The extent's pieces without what lies behind the file's end."""
    pieces, left = [], extent.bytes
    for piece in extent.pieces:
        pieces.append((piece.offset, min(piece.length, left)))
        left -= pieces[-1][1]
    return pieces
