"""A worker's side of the store: lease a checkpoint's image and see it as torch tensors.

A lease lasts as long as any of its tensors, and no longer than the process, however that dies. It outlives the Store's
close() and the store's own restart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from . import _core, link
from .arena_view import ArenaView, tensors_in
from .attachment import Attachment, attachment_of
from .checkpoint import check_given, is_url
from .devices import CPU, device_of, is_cpu, name_of
from .errors import StoreUnavailable
from .keys import Keys, wanted
from .progress import Progress
from .receipts import Estimate, LoadReceipt
from .replies import Attached, DeviceAttached, Estimated, Evicted, Pinned, Prefetching, Status, Unpinned
from .requests import (
    Attach,
    AttachDevice,
    Evict,
    GetEstimate,
    GetStatus,
    Pin,
    Prefetch,
    Question,
    Release,
    ReleaseDevice,
    Unpin,
)
from .session import Answer, Session
from .store_status import ImageStatus, StoreStatus

if TYPE_CHECKING:
    import torch

    from ._core import ArenaSlice


class Store:
    """A connection to the node's store daemon. One thread at a time waits in it; close() may come from any thread.

    Where the daemon dies, the request in flight raises StoreUnavailable and the next one connects again; tensors stay
    valid, and their leases too where the daemon's successor has the same arena.
    """

    def __init__(self, socket_path: Path | str, *, timeout_s: float = 120.0, connect_timeout_s: float = 2.0) -> None:
        """Connects, waiting up to `connect_timeout_s` for a store that is just starting. Raises StoreUnavailable.

        `timeout_s` is how long an answer may take, and an attach or load may stand still; each request can have its
        own, which is a time in all. All are seconds, from 0; TypeError and ValueError say where one is not.
        """
        self._path = os.fspath(socket_path)
        self._session = Session(self._path, timeout_s, connect_timeout_s)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def attach(
        self,
        path: Path | str,
        timeout_s: float | None = None,
        *,
        device: str | torch.device = CPU,
        keys: Keys | None = None,
        progress: Progress | None = None,
    ) -> Attachment:
        """Leases the checkpoint at `path`, a local path or a URL, which the store loads first if it does not hold it.

        On a `device` ("cuda:0") the store brings it into memory there, which this process shares, and keeps it there;
        nobody should write to such tensors. With `keys` only those tensors are made. `progress` is called with the
        bytes done and in all, a few times a second while the load goes on; what it raises cancels the attach. So does
        a load that takes longer than `timeout_s`, or without one that reads nothing for the Store's. Raises
        CheckpointError, StoreFull, StoreTimeout, StoreCancelled (close() from another thread), StoreUnavailable,
        DeviceError; TensorNotFound for a name that the checkpoint does not have.
        """
        chosen = wanted(keys)
        if is_cpu(device):
            attachment = self._attach_in_dram(path, timeout_s, chosen.accepts, progress)
        else:
            attachment = self._attach_on_device(path, name_of(device), timeout_s, chosen.accepts, progress)
        chosen.check(attachment.tensors.keys(), str(path))
        return attachment

    def premap(self) -> None:
        """Maps the arena and fills the page tables of all memory it has by now; attach() then only makes views.

        Raises StoreUnavailable, StoreFull.
        """
        with self._session.lock:
            self._session.connect()
            view = self._session.arena()
        view.populate()

    def release(self, attachment: Attachment) -> None:
        """Empties the attachment. The lease ends with that, or with the last tensor that somebody took out of it."""
        attachment._contents.clear()
        attachment._memory.clear()

    def prefetch(self, path: Path | str, timeout_s: float | None = None) -> ImageStatus:
        """Has the store load a checkpoint and returns at once; status() shows the progress.

        Raises CheckpointError for what is wrong before reading, StoreFull, StoreUnavailable.
        """
        return self._ask(Prefetch(id=self._session.new_id(), path=_absolute(path)), Prefetching, timeout_s).image

    def load(
        self,
        path: Path | str,
        timeout_s: float | None = None,
        *,
        device: str | torch.device = CPU,
        progress: Progress | None = None,
    ) -> LoadReceipt:
        """Brings a checkpoint into the store and says what it cost, without attaching. Raises what attach() does."""
        if is_cpu(device):
            with self._session.lock:
                attached = self._attached(path, timeout_s, progress)
                self._session.post(Release(image_id=attached.image_id))
            return attached.receipt
        with self._session.lock:
            on_device, fds = self._attached_on_device(path, name_of(device), timeout_s, progress)
            link.close_all(fds)
            self._session.post(ReleaseDevice(image_id=on_device.image_id))
        return on_device.receipt

    def pin(self, path: Path | str, timeout_s: float | None = None) -> ImageStatus:
        """As prefetch(), and the image then stays without a lease, until unpin(); it outlives this connection.

        What stays is the version that is there now: a checkpoint that is rewritten needs a pin of its own.
        """
        return self._ask(Pin(id=self._session.new_id(), path=_absolute(path)), Pinned, timeout_s).image

    def unpin(self, path: Path | str, timeout_s: float | None = None) -> int:
        """Lets every image of a checkpoint go again when its room is needed; returns how many were pinned."""
        return self._ask(Unpin(id=self._session.new_id(), path=_absolute(path)), Unpinned, timeout_s).images

    def estimate(
        self, path: Path | str, timeout_s: float | None = None, *, device: str | torch.device = CPU
    ) -> Estimate:
        """How long an attach would take now, from which tier, behind which queue; nothing is loaded.

        Raises CheckpointError for what is wrong before reading, StoreFull where the attach would, StoreUnavailable.
        """
        name = "" if is_cpu(device) else name_of(device)
        request = GetEstimate(id=self._session.new_id(), path=_absolute(path), device=name)
        return self._ask(request, Estimated, timeout_s).estimate

    def evict(self, path: Path | str, timeout_s: float | None = None) -> int:
        """Has the store drop every image of a checkpoint, in DRAM and on GPUs; returns how many, with the memory free.

        Raises ImageLeased where somebody uses one, ImagePinned, StoreUnavailable.
        """
        return self._ask(Evict(id=self._session.new_id(), path=_absolute(path)), Evicted, timeout_s).images

    def status(self, timeout_s: float | None = None) -> StoreStatus:
        """What the store holds and does at this moment."""
        return self._ask(GetStatus(id=self._session.new_id()), Status, timeout_s).status

    def close(self) -> None:
        """Ends the use of this Store; a thread that waits in it gets StoreCancelled.

        Tensors stay valid and keep their leases: the connection stays until the last of them is gone.
        """
        if self._session.interrupt():
            with self._session.lock:
                self._session.close()

    # Attaching. A reconnect ends the leases that nobody has counted, so the lock that keeps it out is held from before
    # the question until the lease is counted.

    def _attach_in_dram(
        self, path: Path | str, timeout_s: float | None, is_wanted: Callable[[str], bool], progress: Progress | None
    ) -> Attachment:
        with self._session.lock:
            self._session.connect()
            mapping_s = time.perf_counter()
            # First: no other answer is needed between the one that brings the lease and its use.
            view = self._session.arena()
            mapping_s = time.perf_counter() - mapping_s
            attached = self._attached(path, timeout_s, progress)
            begin_s = time.perf_counter() - mapping_s
            memory = self._hold(view, attached)
        return attachment_of(attached, begin_s, tensors_in(memory, attached.extents, is_wanted), memory)

    def _attach_on_device(
        self,
        path: Path | str,
        device: str,
        timeout_s: float | None,
        is_wanted: Callable[[str], bool],
        progress: Progress | None,
    ) -> Attachment:
        from .device_tensors import device_tensors_of

        with self._session.lock:
            attached, fds = self._attached_on_device(path, device, timeout_s, progress)
            begin_s = time.perf_counter()
            memory = self._hold_on_device(device, attached, fds)
        return attachment_of(attached, begin_s, device_tensors_of(memory, attached.files, is_wanted), [memory])

    def _attached_on_device(
        self, path: Path | str, device: str, timeout_s: float | None, progress: Progress | None
    ) -> tuple[DeviceAttached, list[int]]:
        """Under the lock. The caller closes the descriptor."""
        request = AttachDevice(
            id=self._session.new_id(),
            path=_absolute(path),
            device=device,
            session=self._session.id,
            progress=_needs_news(timeout_s, progress),
        )
        return self._session.ask_for_memory(request, DeviceAttached, timeout_s, progress)

    def _hold_on_device(self, device: str, attached: DeviceAttached, fds: list[int]) -> _core.DeviceMemory:
        """Under the lock. Closes the descriptors."""
        ending = ReleaseDevice(image_id=attached.image_id)
        try:
            memory = _core.DeviceMemory.from_fd(device_of(device), fds[0], attached.memory_bytes)
        except BaseException:
            self._session.post(ending)
            raise
        finally:
            link.close_all(fds)
        self._session.leases.hold(ending, [memory])
        return memory

    def _attached(self, path: Path | str, timeout_s: float | None, progress: Progress | None) -> Attached:
        """Under the lock."""
        request = Attach(
            id=self._session.new_id(),
            path=_absolute(path),
            session=self._session.id,
            progress=_needs_news(timeout_s, progress),
        )
        return self._session.ask(request, Attached, timeout_s, progress)

    def _hold(self, view: ArenaView, attached: Attached) -> list[ArenaSlice]:
        """Under the lock."""
        try:
            if not self._session.is_current(view) or view.arena_id != attached.arena_id:
                raise StoreUnavailable(f"the store at {self._path} was replaced while it was asked; ask again")
            return view.hold(attached.image_id, attached.extents)
        except BaseException:
            self._session.post(Release(image_id=attached.image_id))
            raise

    def _ask(self, request: Question, kind: type[Answer], timeout_s: float | None) -> Answer:
        with self._session.lock:
            return self._session.ask(request, kind, timeout_s, None)


def _needs_news(timeout_s: float | None, progress: Progress | None) -> bool:
    """Whether an attach is told of its progress: for whoever asks, or to tell a slow load from one that hangs."""
    return progress is not None or timeout_s is None


def _absolute(path: Path | str) -> str:
    check_given(path)
    return path if isinstance(path, str) and is_url(path) else str(Path(path).absolute())
