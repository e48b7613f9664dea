"""The store daemon's loop: it waits for whatever happens next, and carries out the Keeper's effects.

One thread runs the loop and owns the keeper, every connection (connections.py) and what turns their requests into calls
of the keeper (dispatcher.py). What blocks is done by the threads of work.py, opener.py and lookups.py, which report
through a queue that wakes the loop.
"""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from uuid import uuid4

from . import _core
from .cache import Image, ImageCache
from .connection import Connection
from .connections import Connections
from .device_state import DeviceState
from .device_tier import COPIER, DeviceTier
from .dispatcher import Dispatcher
from .effects import LoadResult
from .errors import LoaderError
from .estimator import Throttles
from .holes import Move
from .keeper import Keeper
from .lookups import Lookups
from .metrics import StoreSnapshot
from .opener import Opener, Resolver
from .prefaulter import Prefaulter
from .processes import ProcessId
from .quarantine import QUARANTINE_S
from .replies import Reply
from .reports import ArenaFacts
from .requests import Request
from .state import Legacy, Slots, StoreState
from .store_status import DeviceStatus, SsdCacheStatus
from .timers import Timers
from .watcher import Watcher
from .work import Loader, Work

log = logging.getLogger("serverless_triton.store")

SNAPSHOT_TIMEOUT_S = 5.0
PROGRESS_S = 0.1
# For all that runs when the store stops. With what the SSD cache may take after it, less than holder.GRACE_S.
CLOSE_TIMEOUT_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreParts:
    """What a server works with. `gpu_bytes` is the budget of each GPU, 0 for no GPU tier."""

    listener: socket.socket
    arena: _core.Arena
    slots: Slots
    loader: Loader
    opener: Opener
    ssd_cache: Callable[[], SsdCacheStatus]
    throttles: Throttles
    gpu_bytes: int = 0
    prefault: bool = True


class StoreServer:
    """Serves one listening socket until stop(). Only stop(), snapshot() and post() may be called from other threads."""

    def __init__(self, parts: StoreParts) -> None:
        self._parts = parts
        self._legacy = Legacy(parts.slots)
        self._arena_id = uuid4().hex
        self._keeper = Keeper(ImageCache(parts.arena.bytes, self._legacy.room.images_bytes), self, parts.throttles)
        self._prefaulter = Prefaulter(parts.arena)
        self._devices = DeviceTier(self._keeper, parts.arena, parts.gpu_bytes, self)
        self._work = Work(parts.arena, parts.loader, self, self.post, self._devices.streaming)
        self._resolver = Resolver(parts.opener, self.post)
        self._lookups = Lookups(self.post)
        self._dispatcher = Dispatcher(
            self._keeper, self._devices, self._resolver, self._lookups, parts.arena, parts.throttles, self
        )
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._timers = Timers()
        self._connections = Connections(parts.listener, self._selector, self)
        self._watcher = Watcher(self._selector, self._process_ended, self.later)
        self._tells_progress = False
        self._is_stopping = False

    def run(self) -> None:
        """Blocks until stop(); then cancels the loads, answers all who wait and closes everything."""
        self._register()
        self._adopt()
        if self._parts.prefault:
            self._prefaulter.start()
        try:
            while not self._is_stopping:
                self._step()
        finally:
            self._shut_down()

    def stop(self) -> None:
        """Ends run() soon. Safe in signal handlers and from any thread, any number of times."""
        self._is_stopping = True
        self._wake()

    def snapshot(self) -> StoreSnapshot:
        """The store's state, taken between two requests. For other threads while run() runs; raises TimeoutError."""
        answer: Future[StoreSnapshot] = Future()
        self.post(lambda: answer.set_result(self._keeper.snapshot()))
        return answer.result(SNAPSHOT_TIMEOUT_S)

    # Effects of the keeper

    def reply(self, client: int, message: Reply, descriptors: Sequence[int] = ()) -> None:
        if client == COPIER:
            self._devices.hear(message)
        else:
            self._connections.send(client, message, descriptors)

    def save(self, state: StoreState) -> None:
        self._legacy.save_store(state)

    def save_devices(self, state: DeviceState) -> None:
        self._legacy.save_devices(state)

    def watch(self, client: int, process: ProcessId) -> None:
        self._watcher.watch(client, process)

    def unwatch(self, client: int) -> None:
        self._watcher.unwatch(client)

    def expect_progress(self) -> None:
        if not self._tells_progress:
            self._tells_progress = True
            self.later(0.0, self._tell_progress)

    def start_load(self, image: Image) -> None:
        self._prefaulter.pause()
        self._work.start_load(image)

    def cancel_load(self, image: Image) -> None:
        self._work.cancel_load(image)

    def pause_load(self, image: Image) -> None:
        self._work.pause_load(image)

    def resume_load(self, image: Image) -> None:
        self._work.resume_load(image)

    def start_moves(self, moves: Sequence[Move]) -> None:
        self._work.start_moves(moves)

    def read_bytes(self, image: Image) -> int:
        return self._work.read_bytes(image)

    def arena(self) -> ArenaFacts:
        return ArenaFacts(
            id=self._arena_id,
            kind=self._parts.arena.kind,
            page_bytes=self._parts.arena.page_bytes,
            interleaved_nodes=tuple(self._parts.arena.interleaved_nodes),
            prefaulted_bytes=self._prefaulter.prefaulted_bytes,
        )

    def ssd_cache(self) -> SsdCacheStatus:
        return self._parts.ssd_cache()

    def devices(self) -> tuple[DeviceStatus, ...]:
        return self._devices.requests.status()

    # The loop

    def _register(self) -> None:
        for sock in (self._parts.listener, self._wake_receiver, self._wake_sender):
            sock.setblocking(False)
        self._connections.listen()
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, self._drain_wakes)

    def _adopt(self) -> None:
        state = self._legacy.read()
        if state is None:
            return
        self._arena_id = state.store.arena_id
        next_client = self._keeper.adopt(state.store, COPIER + 1)
        self._connections.number_from(self._devices.requests.adopt(state.devices, next_client))
        leases = sum(lease.count for lease in state.store.leases) + sum(lease.count for lease in state.devices.leases)
        log.info("adopted images=%d leases=%d", len(state.store.images), leases)
        if state.store.in_flight:
            self.later(QUARANTINE_S, lambda: self._keeper.end_quarantine(time.monotonic()))

    def _step(self) -> None:
        for key, events in self._selector.select(self._timeout_s()):
            if isinstance(key.data, Connection):
                self._connections.serve(key.data, events)
            else:
                key.data()
        while not self._events.empty():
            self._events.get()()
        for call in self._timers.take_due(time.monotonic()):
            call()

    def _timeout_s(self) -> float | None:
        due_s = self._timers.next_due_s()
        return None if due_s is None else max(0.0, due_s - time.monotonic())

    def _tell_progress(self) -> None:
        self._tells_progress = self._keeper.tell_progress()
        if self._tells_progress:
            self.later(PROGRESS_S, self._tell_progress)

    # What the clients do

    def on_connected(self, client: int, process: ProcessId) -> None:
        self._keeper.connect(client, process)
        self._devices.requests.connect(client, process)

    def on_request(self, client: int, request: Request) -> None:
        self._dispatcher.handle(client, request)

    def on_refused(self, client: int, request: Request, error: LoaderError) -> None:
        self._dispatcher.refuse(client, request, error)

    def on_disconnected(self, client: int) -> None:
        self._resolver.cancel_all(client)
        self._lookups.cancel_all(client)
        self._keeper.disconnect(client, time.monotonic())
        self._devices.requests.disconnect(client, time.monotonic())

    def _process_ended(self, client: int) -> None:
        self._keeper.process_ended(client, time.monotonic())
        self._devices.requests.process_ended(client, time.monotonic())

    # What the threads tell

    def on_loaded(self, image: Image, result: LoadResult) -> None:
        self._resume_prefault()
        self._keeper.load_finished(image, result, time.monotonic())

    def on_failed(self, image: Image, error: LoaderError) -> None:
        self._resume_prefault()
        self._keeper.load_failed(image, error, time.monotonic())

    def on_moved(self) -> None:
        self._keeper.moved(time.monotonic())

    def on_broken(self, error: BaseException) -> None:
        # The next daemon finds the images that did not move.
        raise error

    def _resume_prefault(self) -> None:
        if not self._work.is_loading:
            self._prefaulter.resume()

    # For all that works on the loop

    def later(self, pause_s: float, call: Callable[[], None]) -> None:
        """Has `call` called on the loop when that time has passed."""
        self._timers.add(time.monotonic() + pause_s, call)

    def post(self, event: Callable[[], None]) -> None:
        self._events.put(event)
        self._wake()

    def _wake(self) -> None:
        try:
            self._wake_sender.send(b"\0")
        except (BlockingIOError, OSError):
            # Full: a wake-up is on its way anyway. Closed: nobody is left to wake.
            return

    def _drain_wakes(self) -> None:
        try:
            while self._wake_receiver.recv(4096):
                pass
        except BlockingIOError:
            return

    def _shut_down(self) -> None:
        self._keeper.shut_down()
        self._resolver.close()
        self._lookups.close()
        self._prefaulter.stop()
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        self._work.close(deadline_s)
        self._devices.close(deadline_s)
        self._connections.close()
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()
