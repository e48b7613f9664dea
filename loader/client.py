"""A worker's side of the store: lease a checkpoint's image and see it as torch tensors.

A lease lasts as long as any of its tensors, and no longer than the process, however that dies. It outlives the Store's
close() and the store's own restart.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from . import _core, link
from .arena_view import ArenaView, tensors_in
from .attachment import Attachment, attachment_of
from .checkpoint import check_given, is_url
from .devices import CPU, device_of, is_cpu, name_of
from .errors import (
    LoaderError,
    StoreCancelled,
    StoreProtocolError,
    StoreTimeout,
    StoreUnavailable,
    error_of,
)
from .held_leases import HeldLeases
from .keys import Keys, wanted
from .progress import Progress
from .receipts import Estimate, LoadReceipt
from .replies import (
    ArenaMapped,
    Attached,
    DeviceAttached,
    DevicesReclaimed,
    Estimated,
    Evicted,
    Failed,
    Pinned,
    Prefetching,
    Reclaimed,
    Reply,
    Status,
    Unpinned,
)
from .requests import (
    Attach,
    AttachDevice,
    Cancel,
    Evict,
    GetEstimate,
    GetStatus,
    MapArena,
    Pin,
    Prefetch,
    Question,
    Reclaim,
    ReclaimDevices,
    Release,
    ReleaseDevice,
    Unpin,
)
from .store_link import Interrupted, OnProgress, StoreLink
from .store_status import ImageStatus, StoreStatus

if TYPE_CHECKING:
    import torch

    from ._core import ArenaSlice

Answer = TypeVar("Answer", bound=Reply)

# How long a cancelled request may take to be answered before the store is taken for stuck.
CANCEL_GRACE_S = 2.0
# A daemon that died is replaced at once by its holder, a store that was stopped by whoever supervises it.
RECONNECT_TIMEOUT_S = 2.0


class Store:
    """A connection to the node's store daemon. One thread at a time waits in it; close() may come from any thread.

    Where the daemon dies, the request in flight raises StoreUnavailable and the next one connects again; tensors stay
    valid, and their leases too where the daemon's successor has the same arena.
    """

    def __init__(self, socket_path: Path | str, *, timeout_s: float = 120.0, connect_timeout_s: float = 2.0) -> None:
        """Connects, waiting up to `connect_timeout_s` for a store that is just starting. Raises StoreUnavailable."""
        self._path = os.fspath(socket_path)
        self._timeout_s = timeout_s
        self._ids = count(1)
        self._session = uuid4().hex
        self._lock = threading.Lock()
        self._closed = False
        self._view: ArenaView | None = None
        self._link = StoreLink(self._path, connect_timeout_s)
        self._leases = HeldLeases(self._link)

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
        bytes done and in all, a few times a second while the load goes on; what it raises cancels the attach. Raises
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
        with self._lock:
            self._connect()
            view = self._mapped()
        view.populate()

    def release(self, attachment: Attachment) -> None:
        """Empties the attachment. The lease ends with that, or with the last tensor that somebody took out of it."""
        attachment._contents.clear()
        attachment._memory.clear()

    def prefetch(self, path: Path | str, timeout_s: float | None = None) -> ImageStatus:
        """Has the store load a checkpoint and returns at once; status() shows the progress.

        Raises CheckpointError for what is wrong before reading, StoreFull, StoreUnavailable.
        """
        return self._ask(Prefetch(id=next(self._ids), path=_absolute(path)), Prefetching, timeout_s).image

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
            with self._lock:
                attached = self._attached(path, timeout_s, progress)
                self._link.post(Release(image_id=attached.image_id))
            return attached.receipt
        with self._lock:
            on_device, fds = self._attached_on_device(path, name_of(device), timeout_s, progress)
            link.close_all(fds)
            self._link.post(ReleaseDevice(image_id=on_device.image_id))
        return on_device.receipt

    def pin(self, path: Path | str, timeout_s: float | None = None) -> ImageStatus:
        """As prefetch(), and the image then stays without a lease, until unpin(); it outlives this connection.

        What stays is the version that is there now: a checkpoint that is rewritten needs a pin of its own.
        """
        return self._ask(Pin(id=next(self._ids), path=_absolute(path)), Pinned, timeout_s).image

    def unpin(self, path: Path | str, timeout_s: float | None = None) -> int:
        """Lets every image of a checkpoint go again when its room is needed; returns how many were pinned."""
        return self._ask(Unpin(id=next(self._ids), path=_absolute(path)), Unpinned, timeout_s).images

    def estimate(
        self, path: Path | str, timeout_s: float | None = None, *, device: str | torch.device = CPU
    ) -> Estimate:
        """How long an attach would take now, from which tier, behind which queue; nothing is loaded.

        Raises CheckpointError for what is wrong before reading, StoreFull where the attach would, StoreUnavailable.
        """
        name = "" if is_cpu(device) else name_of(device)
        request = GetEstimate(id=next(self._ids), path=_absolute(path), device=name)
        return self._ask(request, Estimated, timeout_s).estimate

    def evict(self, path: Path | str, timeout_s: float | None = None) -> int:
        """Has the store drop every image of a checkpoint, in DRAM and on GPUs; returns how many, with the memory free.

        Raises ImageLeased where somebody uses one, ImagePinned, StoreUnavailable.
        """
        return self._ask(Evict(id=next(self._ids), path=_absolute(path)), Evicted, timeout_s).images

    def status(self, timeout_s: float | None = None) -> StoreStatus:
        """What the store holds and does at this moment."""
        return self._ask(GetStatus(id=next(self._ids)), Status, timeout_s).status

    def close(self) -> None:
        """Ends the use of this Store; a thread that waits in it gets StoreCancelled.

        Tensors stay valid and keep their leases: the connection stays until the last of them is gone.
        """
        self._closed = True
        self._link.interrupt()
        with self._lock:
            self._leases.close_link_after_last()
            self._view = None

    # Attaching. A reconnect ends the leases that nobody has counted, so the lock that keeps it out is held from before
    # the question until the lease is counted.

    def _attach_in_dram(
        self, path: Path | str, timeout_s: float | None, is_wanted: Callable[[str], bool], progress: Progress | None
    ) -> Attachment:
        with self._lock:
            self._connect()
            mapping_s = time.perf_counter()
            # First: no other answer is needed between the one that brings the lease and its use.
            view = self._mapped()
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

        with self._lock:
            attached, fds = self._attached_on_device(path, device, timeout_s, progress)
            begin_s = time.perf_counter()
            memory = self._hold_on_device(device, attached, fds)
        return attachment_of(attached, begin_s, device_tensors_of(memory, attached.files, is_wanted), [memory])

    def _attached_on_device(
        self, path: Path | str, device: str, timeout_s: float | None, progress: Progress | None
    ) -> tuple[DeviceAttached, list[int]]:
        """Under the lock. The caller closes the descriptor."""
        request = AttachDevice(
            id=next(self._ids),
            path=_absolute(path),
            device=device,
            session=self._session,
            progress=progress is not None,
        )
        reply, fds = self._exchange(request, self._budget_s(timeout_s), progress)
        try:
            return self._checked(reply, DeviceAttached), fds
        except BaseException:
            link.close_all(fds)
            raise

    def _hold_on_device(self, device: str, attached: DeviceAttached, fds: list[int]) -> _core.DeviceMemory:
        """Under the lock. Closes the descriptors."""
        ending = ReleaseDevice(image_id=attached.image_id)
        try:
            memory = _core.DeviceMemory.from_fd(device_of(device), fds[0], attached.memory_bytes)
        except BaseException:
            self._link.post(ending)
            raise
        finally:
            link.close_all(fds)
        self._leases.hold(ending, [memory])
        return memory

    def _attached(self, path: Path | str, timeout_s: float | None, progress: Progress | None) -> Attached:
        """Under the lock."""
        request = Attach(id=next(self._ids), path=_absolute(path), session=self._session, progress=progress is not None)
        return self._asked(request, Attached, timeout_s, progress)

    def _hold(self, view: ArenaView, attached: Attached) -> list[ArenaSlice]:
        """Under the lock."""
        try:
            if view is not self._view or view.arena_id != attached.arena_id:
                raise StoreUnavailable(f"the store at {self._path} was replaced while it was asked; ask again")
            return view.hold(attached.image_id, attached.extents)
        except BaseException:
            self._link.post(Release(image_id=attached.image_id))
            raise

    def _mapped(self) -> ArenaView:
        """The view of the arena of the store that is connected. Under the lock."""
        if self._view is None:
            reply, fds = self._exchange(MapArena(id=next(self._ids)), self._timeout_s, None)
            try:
                self._view = ArenaView(self._checked(reply, ArenaMapped), os.dup(fds[0]), self._leases)
            finally:
                link.close_all(fds)
        return self._view

    # Asking

    def _ask(
        self, request: Question, kind: type[Answer], timeout_s: float | None, progress: Progress | None = None
    ) -> Answer:
        with self._lock:
            return self._asked(request, kind, timeout_s, progress)

    def _asked(
        self, request: Question, kind: type[Answer], timeout_s: float | None, progress: Progress | None = None
    ) -> Answer:
        """Under the lock."""
        reply, fds = self._exchange(request, self._budget_s(timeout_s), progress)
        link.close_all(fds)
        return self._checked(reply, kind)

    def _budget_s(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s

    def _exchange(self, request: Question, budget_s: float, on_progress: OnProgress | None) -> tuple[Reply, list[int]]:
        self._connect()
        self._link.send(request, self._timeout_s)
        try:
            return self._link.wait(request.id, time.monotonic() + budget_s, on_progress)
        except TimeoutError:
            return self._give_up(request, budget_s)
        except Interrupted:
            self._abandon(request)
            raise StoreCancelled(f"the connection to {self._path} was closed while waiting") from None
        except LoaderError:
            raise
        except BaseException:
            self._abandon(request)
            raise

    def _give_up(self, request: Question, budget_s: float) -> tuple[Reply, list[int]]:
        """Cancels, and takes the answer that may have been under way."""
        self._link.send(Cancel(id=request.id), CANCEL_GRACE_S)
        try:
            reply, fds = self._link.wait(request.id, time.monotonic() + CANCEL_GRACE_S, None)
        except TimeoutError:
            self._link.close()
            raise StoreTimeout(
                f"the store at {self._path} did not answer within {budget_s} s nor to the cancellation; this "
                "connection is closed; check the store process"
            ) from None
        if isinstance(reply, Failed) and reply.error == StoreCancelled.__name__:
            raise StoreTimeout(f"{type(request).__name__} took longer than {budget_s} s at the store {self._path}")
        return reply, fds

    def _abandon(self, request: Question) -> None:
        """Cancels, and gives back what the answer that may have been under way brings."""
        with contextlib.suppress(TimeoutError, StoreUnavailable, Interrupted):
            self._link.send(Cancel(id=request.id), CANCEL_GRACE_S)
            reply, fds = self._link.wait(request.id, time.monotonic() + CANCEL_GRACE_S, None)
            link.close_all(fds)
            if isinstance(reply, Attached):
                self._link.post(Release(image_id=reply.image_id))
            elif isinstance(reply, DeviceAttached):
                self._link.post(ReleaseDevice(image_id=reply.image_id))
            return
        self._link.close()

    def _connect(self) -> None:
        """Connects again where the store has closed the connection. Under the lock. Raises StoreUnavailable."""
        if self._closed:
            raise StoreCancelled(f"the connection to {self._path} was closed; open a new Store")
        if self._link.is_lost():
            self._reconnect()

    def _reconnect(self) -> None:
        self._link.close()
        self._link = StoreLink(self._path, RECONNECT_TIMEOUT_S)
        try:
            is_same_store = self._reclaim()
        except BaseException:
            # Without its leases a connection must not be used; the next request tries again.
            self._link.close()
            raise
        if not is_same_store:
            # Another store: the memory of the one before lives on for as long as its tensors do.
            self._view = None
            self._leases = HeldLeases(self._link)

    def _reclaim(self) -> bool:
        """False where the store is not the one that gave the leases. Raises StoreUnavailable, StoreProtocolError."""
        in_dram, on_devices = self._leases.arena_counts, self._leases.device_counts
        arena_id = self._view.arena_id if self._view else ""
        reclaimed = self._answer(
            Reclaim(id=next(self._ids), arena_id=arena_id, session=self._session, leases=in_dram), Reclaimed
        )
        devices = self._answer(
            ReclaimDevices(id=next(self._ids), session=self._session, leases=on_devices), DevicesReclaimed
        )
        if reclaimed.arena_id != arena_id and (self._view or devices.leases != on_devices):
            return False
        self._leases.reconnect(self._link, reclaimed.leases, devices.leases)
        if reclaimed.leases != in_dram or devices.leases != on_devices:
            raise StoreProtocolError(f"the store at {self._path} lost leases of this process; restart this process")
        return True

    def _answer(self, request: Reclaim | ReclaimDevices, kind: type[Answer]) -> Answer:
        self._link.send(request, self._timeout_s)
        try:
            reply, fds = self._link.wait(request.id, time.monotonic() + self._timeout_s, None)
        except (TimeoutError, Interrupted) as error:
            raise self._link.lost() from error
        link.close_all(fds)
        return self._checked(reply, kind)

    def _checked(self, reply: Reply, kind: type[Answer]) -> Answer:
        if isinstance(reply, Failed):
            raise error_of(reply.error, reply.message)
        if not isinstance(reply, kind):
            raise StoreProtocolError(
                f"the store at {self._path} answered with {type(reply).__name__}; run the same version on both sides"
            )
        return reply


def _absolute(path: Path | str) -> str:
    check_given(path)
    return path if isinstance(path, str) and is_url(path) else str(Path(path).absolute())
