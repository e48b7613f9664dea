"""A client's session with the store, over as many connections as it takes: questions, the arena's view, the leases.

Where the connection is lost, the next question makes a new one and reclaims the leases. What is asked for, and what
becomes of the memory that comes with an answer, is client.py's business.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import threading
from itertools import count
from typing import TypeVar
from uuid import uuid4

from . import link
from .arena_view import ArenaView
from .deadline import Deadline, check_timeout
from .errors import LoaderError, StoreCancelled, StoreProtocolError, StoreTimeout, StoreUnavailable, error_of
from .held_leases import HeldLeases
from .replies import ArenaMapped, Attached, DeviceAttached, DevicesReclaimed, Failed, Reclaimed, Reply
from .requests import (
    Attach,
    AttachDevice,
    Cancel,
    MapArena,
    Question,
    Reclaim,
    ReclaimDevices,
    Release,
    ReleaseDevice,
    Request,
)
from .store_link import Interrupted, OnProgress, StoreLink
from .wake import Wake

Answer = TypeVar("Answer", bound=Reply)

# How long a cancelled request may take to be answered before the store is taken for stuck.
CANCEL_GRACE_S = 2.0
# A daemon that died is replaced at once by its holder, a store that was stopped by whoever supervises it.
RECONNECT_TIMEOUT_S = 2.0


class Session:
    """Who holds its `lock` uses it; interrupt() and new_id() may be called by any thread."""

    def __init__(self, path: str, timeout_s: float, connect_timeout_s: float) -> None:
        """Connects, waiting up to `connect_timeout_s` for a store that is just starting. Raises StoreUnavailable."""
        check_timeout(timeout_s)
        check_timeout(connect_timeout_s, "connect_timeout_s")
        self.id = uuid4().hex
        self.lock = threading.Lock()
        self._path = path
        self._timeout_s = timeout_s
        self._ids = count(1)
        self._closed = False
        self._view: ArenaView | None = None
        # Of the leases; they may outlive the view.
        self._arena_id = ""
        self._wake = Wake()
        self._link = StoreLink(path, connect_timeout_s, self._wake)
        self._leases = HeldLeases(self._link, self._tell_ends_soon)

    @property
    def leases(self) -> HeldLeases:
        """Those of the store that answered last."""
        return self._leases

    def new_id(self) -> int:
        """For the next request."""
        return next(self._ids)

    def connect(self) -> None:
        """Connects again where the store has closed the connection. Raises StoreUnavailable, StoreCancelled."""
        if self._closed:
            raise StoreCancelled(f"the connection to {self._path} was closed; open a new Store")
        if self._link.is_lost():
            try:
                self._reconnect(self._wake)
            except Interrupted:
                raise self._closed_meanwhile() from None

    def arena(self) -> ArenaView:
        """The view of the arena of the store that is connected. Raises StoreUnavailable, StoreFull."""
        if self._view is None:
            mapped, fds = self.ask_for_memory(MapArena(id=self.new_id()), ArenaMapped, None, None)
            try:
                self._view = ArenaView(mapped, os.dup(fds[0]), self._leases)
                self._arena_id = mapped.arena_id
            finally:
                link.close_all(fds)
        return self._view

    def is_current(self, view: ArenaView) -> bool:
        """Whether that arena is still the store's that is connected."""
        return view is self._view

    def ask(
        self, request: Question, kind: type[Answer], timeout_s: float | None, on_progress: OnProgress | None
    ) -> Answer:
        """The answer, which takes `timeout_s` at most; for None the session's own, for an attach without progress.

        Raises what the store answers, StoreTimeout, StoreCancelled, StoreUnavailable, and what on_progress raises.
        """
        reply, fds = self._exchange(request, self._deadline_of(request, timeout_s), on_progress)
        link.close_all(fds)
        return self._checked(reply, kind)

    def ask_for_memory(
        self, request: Question, kind: type[Answer], timeout_s: float | None, on_progress: OnProgress | None
    ) -> tuple[Answer, list[int]]:
        """As ask(), with the descriptors that came, which the caller closes."""
        reply, fds = self._exchange(request, self._deadline_of(request, timeout_s), on_progress)
        try:
            return self._checked(reply, kind), fds
        except BaseException:
            link.close_all(fds)
            raise

    def post(self, request: Request) -> None:
        """Says what has no answer."""
        self._link.post(request)

    def interrupt(self) -> bool:
        """Ends it for a thread that waits in it, which gets StoreCancelled, and for all who would ask from now on.

        False where somebody has before.
        """
        was_closed, self._closed = self._closed, True
        self._wake.set()
        return not was_closed

    def close(self) -> None:
        """After interrupt(). The connection stays until the last lease has ended."""
        self._leases.close_link_after_last()
        self._view = None
        if self._leases.has_untold:
            self._tell_ends_soon()

    def _deadline_of(self, request: Question, timeout_s: float | None) -> Deadline:
        if timeout_s is not None:
            return Deadline(timeout_s)
        return Deadline(self._timeout_s, of_standstill=isinstance(request, Attach | AttachDevice))

    def _exchange(
        self, request: Question, deadline: Deadline, on_progress: OnProgress | None
    ) -> tuple[Reply, list[int]]:
        self.connect()
        try:
            self._link.send(request, self._timeout_s, self._wake)
            return self._link.wait(request.id, deadline, self._wake, on_progress)
        except TimeoutError:
            return self._give_up(request, deadline)
        except Interrupted:
            self._abandon(request)
            raise self._closed_meanwhile() from None
        except LoaderError:
            raise
        except BaseException:
            self._abandon(request)
            raise

    def _give_up(self, request: Question, deadline: Deadline) -> tuple[Reply, list[int]]:
        """Cancels, and takes the answer that may have been under way."""
        self._link.send(Cancel(id=request.id), CANCEL_GRACE_S, None)
        try:
            reply, fds = self._link.wait(request.id, Deadline(CANCEL_GRACE_S), None)
        except TimeoutError:
            self._link.close()
            raise StoreTimeout(
                f"{type(request).__name__} {deadline} at the store {self._path}, which did not answer to the "
                "cancellation either; this connection is closed; check the store process"
            ) from None
        if isinstance(reply, Failed) and reply.error == StoreCancelled.__name__:
            raise StoreTimeout(
                f"{type(request).__name__} {deadline} at the store {self._path} and was cancelled; give it a longer "
                "timeout_s, or prefetch() the checkpoint, which goes on with nobody waiting; status() shows its way"
            )
        return reply, fds

    def _abandon(self, request: Question) -> None:
        """Cancels, and gives back what the answer that may have been under way brings."""
        with contextlib.suppress(TimeoutError, StoreUnavailable):
            self._link.send(Cancel(id=request.id), CANCEL_GRACE_S, None)
            reply, fds = self._link.wait(request.id, Deadline(CANCEL_GRACE_S), None)
            link.close_all(fds)
            if isinstance(reply, Attached):
                self._link.post(Release(image_id=reply.image_id))
            elif isinstance(reply, DeviceAttached):
                self._link.post(ReleaseDevice(image_id=reply.image_id))
            return
        self._link.close()

    def _closed_meanwhile(self) -> StoreCancelled:
        return StoreCancelled(f"the connection to {self._path} was closed while waiting")

    def _tell_ends_soon(self) -> None:
        """A lease ended and the store was gone: its successor believes in it. Called by finalizers, wherever they run.

        Nobody may ever ask again, so a thread of its own connects.
        """
        with contextlib.suppress(RuntimeError):  # no thread to be had: the leases end with the process
            # Not one of threading: its locks may be held by the very code that a finalizer interrupts.
            _thread.start_new_thread(self._tell_ends, ())

    def _tell_ends(self) -> None:
        with self.lock, contextlib.suppress(LoaderError, Interrupted, OSError):
            if self._leases.has_untold and self._link.is_lost():
                # The wake of a closed session is set, and close() itself comes here where it cut this short.
                self._reconnect(None if self._closed else self._wake)
            if self._closed:
                self._leases.close_link_after_last()

    def _reconnect(self, wake: Wake | None) -> None:
        """Raises what connect() does, and Interrupted."""
        self._link.close()
        self._link = StoreLink(self._path, RECONNECT_TIMEOUT_S, wake)
        try:
            is_same_store = self._reclaim(wake)
        except BaseException:
            # Without its leases a connection must not be used; the next request tries again.
            self._link.close()
            raise
        if not is_same_store:
            # Another store: the memory of the one before lives on for as long as its tensors do.
            self._view, self._arena_id = None, ""
            self._leases = HeldLeases(self._link, self._tell_ends_soon)

    def _reclaim(self, wake: Wake | None) -> bool:
        """False where the store is not the one that gave the leases. Raises StoreUnavailable, StoreProtocolError."""
        in_dram, on_devices = self._leases.arena_counts, self._leases.device_counts
        arena_id = self._arena_id
        request = Reclaim(id=self.new_id(), arena_id=arena_id, session=self.id, leases=in_dram)
        reclaimed = self._answer(request, Reclaimed, wake)
        devices_request = ReclaimDevices(id=self.new_id(), session=self.id, leases=on_devices)
        devices = self._answer(devices_request, DevicesReclaimed, wake)
        if reclaimed.arena_id != arena_id and (arena_id or devices.leases != on_devices):
            return False
        self._leases.reconnect(self._link, reclaimed.leases, devices.leases)
        if reclaimed.leases != in_dram or devices.leases != on_devices:
            raise StoreProtocolError(f"the store at {self._path} lost leases of this process; restart this process")
        return True

    def _answer(self, request: Reclaim | ReclaimDevices, kind: type[Answer], wake: Wake | None) -> Answer:
        self._link.send(request, self._timeout_s, wake)
        try:
            reply, fds = self._link.wait(request.id, Deadline(self._timeout_s), wake)
        except TimeoutError as error:
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
