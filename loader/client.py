"""A worker's side of the store: lease a checkpoint's image and see it as torch tensors.

The connection is the lease: it ends when the Store is closed or the process dies, however it dies. Tensors stay valid
after that, because they hold the memory themselves; the store then no longer counts it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from . import _core, link
from .errors import (
    StoreCancelled,
    StoreProtocolError,
    StoreTimeout,
    StoreUnavailable,
    error_of,
)
from .messages import (
    Attach,
    Attached,
    Cancel,
    Estimate,
    Estimated,
    Evict,
    Evicted,
    Failed,
    GetEstimate,
    GetStatus,
    ImageStatus,
    LoadReceipt,
    Pin,
    Pinned,
    Prefetch,
    Prefetching,
    Question,
    Release,
    Reply,
    Status,
    StoreStatus,
    Unpin,
    Unpinned,
    decode_reply,
    encode,
)

if TYPE_CHECKING:
    import torch

# How long a cancelled request may take to be answered before the store is taken for stuck.
CANCEL_GRACE_S = 2.0
CONNECT_RETRY_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A lease: read-only tensors by name, and what it cost to get them."""

    tensors: Mapping[str, torch.Tensor]
    receipt: LoadReceipt
    image_id: int


class Store:
    """A connection to the node's store daemon. One thread at a time waits in it; close() may come from any thread."""

    def __init__(self, socket_path: Path | str, *, timeout_s: float = 120.0, connect_timeout_s: float = 2.0) -> None:
        """Connects, waiting up to `connect_timeout_s` for a store that is just starting. Raises StoreUnavailable."""
        self._path = os.fspath(socket_path)
        self._timeout_s = timeout_s
        self._ids = count(1)
        self._lock = threading.Lock()
        self._closed = False
        self._frames = link.FrameBuffer(link.MAX_REPLY_BYTES)
        self._sock = _connect(self._path, connect_timeout_s)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def attach(self, path: Path | str, timeout_s: float | None = None) -> Attachment:
        """Leases the checkpoint at `path`, which the store loads first if it does not hold it.

        Raises CheckpointError, StoreFull, StoreTimeout, StoreCancelled (close() from another thread),
        StoreUnavailable.
        """
        request = Attach(id=next(self._ids), path=str(Path(path).absolute()))
        reply, fds = self._ask(request, timeout_s)
        try:
            if not isinstance(reply, Attached) or len(fds) != 1:
                raise self._unexpected(reply)
            return _attachment(reply, fds[0])
        except BaseException:
            if isinstance(reply, Attached):
                self._send(encode(Release(image_id=reply.image_id)))
            raise
        finally:
            link.close_all(fds)

    def release(self, attachment: Attachment) -> None:
        """Gives a lease back without closing the connection; the store may then evict the image."""
        with self._lock:
            self._send(encode(Release(image_id=attachment.image_id)))

    def prefetch(self, path: Path | str, timeout_s: float | None = None) -> ImageStatus:
        """Has the store load a checkpoint and returns at once; status() shows the progress.

        Raises CheckpointError for what is wrong before reading, StoreFull, StoreUnavailable.
        """
        reply, _ = self._ask(Prefetch(id=next(self._ids), path=str(Path(path).absolute())), timeout_s)
        if not isinstance(reply, Prefetching):
            raise self._unexpected(reply)
        return reply.image

    def load(self, path: Path | str, timeout_s: float | None = None) -> LoadReceipt:
        """Brings a checkpoint into the store and says what it cost, without attaching. Raises what attach() does."""
        reply, fds = self._ask(Attach(id=next(self._ids), path=str(Path(path).absolute())), timeout_s)
        link.close_all(fds)
        if not isinstance(reply, Attached):
            raise self._unexpected(reply)
        with self._lock:
            self._send(encode(Release(image_id=reply.image_id)))
        return reply.receipt

    def pin(self, path: Path | str, timeout_s: float | None = None) -> ImageStatus:
        """As prefetch(), and the image then stays without a lease, until unpin(); it outlives this connection.

        What stays is the version that is there now: a checkpoint that is rewritten needs a pin of its own.
        """
        reply, _ = self._ask(Pin(id=next(self._ids), path=str(Path(path).absolute())), timeout_s)
        if not isinstance(reply, Pinned):
            raise self._unexpected(reply)
        return reply.image

    def unpin(self, path: Path | str, timeout_s: float | None = None) -> int:
        """Lets every image of a checkpoint go again when its room is needed; returns how many were pinned."""
        reply, _ = self._ask(Unpin(id=next(self._ids), path=str(Path(path).absolute())), timeout_s)
        if not isinstance(reply, Unpinned):
            raise self._unexpected(reply)
        return reply.images

    def estimate(self, path: Path | str, timeout_s: float | None = None) -> Estimate:
        """How long an attach would take now, from which tier, behind which queue; nothing is loaded.

        Raises CheckpointError for what is wrong before reading, StoreFull where the attach would, StoreUnavailable.
        """
        reply, _ = self._ask(GetEstimate(id=next(self._ids), path=str(Path(path).absolute())), timeout_s)
        if not isinstance(reply, Estimated):
            raise self._unexpected(reply)
        return reply.estimate

    def evict(self, path: Path | str, timeout_s: float | None = None) -> int:
        """Has the store drop every image of a checkpoint; returns how many there were, once their memory is free.

        Raises ImageLeased where somebody uses one, ImagePinned, StoreUnavailable.
        """
        reply, _ = self._ask(Evict(id=next(self._ids), path=str(Path(path).absolute())), timeout_s)
        if not isinstance(reply, Evicted):
            raise self._unexpected(reply)
        return reply.images

    def status(self, timeout_s: float | None = None) -> StoreStatus:
        """What the store holds and does at this moment."""
        reply, _ = self._ask(GetStatus(id=next(self._ids)), timeout_s)
        if not isinstance(reply, Status):
            raise self._unexpected(reply)
        return reply.status

    def close(self) -> None:
        """Ends the leases of this connection. A thread that waits in it gets StoreCancelled."""
        self._closed = True
        with contextlib.suppress(OSError):  # the store may have closed it already
            self._sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sock.close()

    def _ask(self, request: Question, timeout_s: float | None) -> tuple[Reply, list[int]]:
        budget_s = self._timeout_s if timeout_s is None else timeout_s
        with self._lock:
            self._send(encode(request))
            try:
                reply, fds = self._wait(request.id, time.monotonic() + budget_s)
            except TimeoutError:
                reply, fds = self._give_up(request, budget_s)
        if isinstance(reply, Failed):
            link.close_all(fds)
            raise error_of(reply.error, reply.message)
        return reply, fds

    def _give_up(self, request: Question, budget_s: float) -> tuple[Reply, list[int]]:
        """Cancels, and takes the answer that may have been under way."""
        self._send(encode(Cancel(id=request.id)))
        try:
            reply, fds = self._wait(request.id, time.monotonic() + CANCEL_GRACE_S)
        except TimeoutError:
            self._closed = True
            self._sock.close()
            raise StoreTimeout(
                f"the store at {self._path} did not answer within {budget_s} s nor to the cancellation; this "
                "connection and its leases are closed; check the store process"
            ) from None
        if isinstance(reply, Failed) and reply.error == StoreCancelled.__name__:
            raise StoreTimeout(f"{type(request).__name__} took longer than {budget_s} s at the store {self._path}")
        return reply, fds

    def _wait(self, request_id: int, deadline_s: float) -> tuple[Reply, list[int]]:
        """The reply to that request and its descriptors. Raises TimeoutError, StoreUnavailable, StoreCancelled."""
        fds: list[int] = []
        try:
            while True:
                data, more_fds = self._receive(deadline_s - time.monotonic())
                fds += more_fds
                for payload in self._frames.feed(data):
                    reply = decode_reply(payload)
                    if reply.id in (0, request_id):
                        return reply, fds
        except BaseException:
            link.close_all(fds)
            raise

    def _receive(self, timeout_s: float) -> tuple[bytes, list[int]]:
        if timeout_s <= 0:
            raise TimeoutError
        try:
            self._sock.settimeout(timeout_s)
            data, fds = link.receive(self._sock, 1)
        except TimeoutError:
            raise
        except OSError as error:
            raise self._lost() from error
        if not data:
            raise self._lost()
        return data, fds

    def _send(self, payload: bytes) -> None:
        if self._closed:
            raise StoreCancelled(f"the connection to {self._path} was closed; open a new Store")
        try:
            self._sock.settimeout(self._timeout_s)
            self._sock.sendall(link.frame(payload))
        except OSError as error:
            raise self._lost() from error

    def _lost(self) -> StoreUnavailable | StoreCancelled:
        if self._closed:
            return StoreCancelled(f"the connection to {self._path} was closed while waiting")
        return StoreUnavailable(f"the store at {self._path} closed the connection; check whether it is running")

    def _unexpected(self, reply: Reply) -> StoreProtocolError:
        return StoreProtocolError(
            f"the store at {self._path} answered with {type(reply).__name__}; run the same version on both sides"
        )


def _connect(path: str, timeout_s: float) -> socket.socket:
    deadline_s = time.monotonic() + timeout_s
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(path)
            return sock
        except OSError as error:
            sock.close()
            is_starting = isinstance(error, (FileNotFoundError, ConnectionRefusedError, BlockingIOError))
            if not is_starting or time.monotonic() > deadline_s:
                raise StoreUnavailable(f"no store answers at {path} ({error}); start one, or check the path") from error
        time.sleep(CONNECT_RETRY_S)


def _attachment(reply: Attached, fd: int) -> Attachment:
    from .tensors import tensors_of

    begin_s = time.perf_counter()
    memory = _core.Mapping.read_only(fd, reply.memory_bytes)
    tensors = tensors_of(memory, reply.extents)
    receipt = replace(reply.receipt, attach_s=time.perf_counter() - begin_s)
    return Attachment(tensors=MappingProxyType(tensors), receipt=receipt, image_id=reply.image_id)
