"""The store daemon's socket loop: accepts clients, turns frames into Keeper calls, carries out the Keeper's effects.

One thread runs the loop and owns the keeper and every connection; what blocks is done by the threads of work.py and
opener.py, which report through a queue that wakes the loop.
"""

from __future__ import annotations

import errno
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from queue import SimpleQueue
from uuid import uuid4

from . import _core, link
from .cache import Image, ImageCache
from .checkpoint import Checkpoint, is_url
from .connection import Connection
from .device_state import DeviceState
from .device_tier import COPIER, DeviceTier
from .effects import LoadResult
from .errors import LoaderError, ProcessUnwatchable, StoreCancelled, StoreError, StoreProtocolError
from .estimator import Throttles
from .holes import Move
from .keeper import Keeper
from .metrics import StoreSnapshot
from .opener import Opener, Resolver, known_as
from .prefaulter import Prefaulter
from .processes import UNKNOWN_PID, ProcessId, process_of
from .quarantine import QUARANTINE_S
from .receipts import Tier
from .remote.urls import without_secrets
from .replies import ArenaMapped, Estimated, Failed, Reply
from .reports import ArenaFacts
from .requests import (
    Attach,
    AttachDevice,
    Cancel,
    Evict,
    GetEstimate,
    GetStatus,
    MapArena,
    PathQuestion,
    Pin,
    Prefetch,
    Reclaim,
    ReclaimDevices,
    Release,
    ReleaseDevice,
    Request,
    Unpin,
)
from .residency import likely_tier
from .state import Legacy, Slots, StoreState
from .store_status import DeviceStatus, SsdCacheStatus
from .timers import Timers
from .watcher import Watcher
from .work import Loader, Work

log = logging.getLogger("serverless_triton.store")

MAX_CLIENTS = 1024
SNAPSHOT_TIMEOUT_S = 5.0
PROGRESS_S = 0.1
# Where there is no descriptor left for another client: it waits in the listener meanwhile.
ACCEPT_PAUSE_S = 0.2
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


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
        self._keeper = Keeper(ImageCache(parts.arena.bytes), self, parts.throttles)
        self._prefaulter = Prefaulter(parts.arena)
        self._devices = DeviceTier(self._keeper, parts.arena, parts.gpu_bytes, self)
        self._work = Work(parts.arena, parts.loader, self, self.post, self._devices.streaming)
        self._resolver = Resolver(parts.opener, self.post)
        self._connections: dict[int, Connection] = {}
        self._refused: dict[int, LoaderError] = {}
        self._client_ids = count(1)
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._timers = Timers()
        self._watcher = Watcher(self._selector, self._process_ended, self._later)
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
            return
        connection = self._connections.get(client)
        if connection is None:
            return
        try:
            connection.queue(message, descriptors)
            connection.flush()
        except (OSError, StoreProtocolError) as error:
            # The keeper is in the middle of a decision: the loop tells it about the loss afterwards.
            self.post(partial(self._drop, connection, str(error)))
            return
        self._watch_socket(connection)

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
            self._later(0.0, self._tell_progress)

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
        self._listen()
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, self._drain_wakes)

    def _adopt(self) -> None:
        state = self._legacy.read()
        if state is None:
            return
        self._arena_id = state.store.arena_id
        next_client = self._keeper.adopt(state.store, COPIER + 1)
        self._client_ids = count(self._devices.requests.adopt(state.devices, next_client))
        leases = sum(lease.count for lease in state.store.leases) + sum(lease.count for lease in state.devices.leases)
        log.info("adopted images=%d leases=%d", len(state.store.images), leases)
        if state.store.in_flight:
            self._later(QUARANTINE_S, lambda: self._keeper.end_quarantine(time.monotonic()))

    def _step(self) -> None:
        for key, events in self._selector.select(self._timeout_s()):
            if isinstance(key.data, Connection):
                self._serve(key.data, events)
            else:
                key.data()
        while not self._events.empty():
            self._events.get()()
        for call in self._timers.take_due(time.monotonic()):
            call()

    def _timeout_s(self) -> float | None:
        due_s = self._timers.next_due_s()
        return None if due_s is None else max(0.0, due_s - time.monotonic())

    def _later(self, pause_s: float, call: Callable[[], None]) -> None:
        self._timers.add(time.monotonic() + pause_s, call)

    def _tell_progress(self) -> None:
        self._tells_progress = self._keeper.tell_progress()
        if self._tells_progress:
            self._later(PROGRESS_S, self._tell_progress)

    def _listen(self) -> None:
        self._selector.register(self._parts.listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._parts.listener.accept()
        except OSError as error:
            log.warning("cannot accept a client: %s", error)
            if error.errno in NO_DESCRIPTORS:
                self._selector.unregister(self._parts.listener)
                self._later(ACCEPT_PAUSE_S, self._listen)
            return
        sock.setblocking(False)
        pid, uid = link.peer_of(sock)
        if uid not in (os.geteuid(), 0) or len(self._connections) >= MAX_CLIENTS:
            log.warning("refused a client of user %d; %d are connected", uid, len(self._connections))
            sock.close()
            return
        client = next(self._client_ids)
        try:
            process = process_of(pid)
        except OSError as error:
            log.warning("cannot look at process %d: %s", pid, error)
            sock.close()
            return
        except ProcessUnwatchable as error:
            # It is told at its first request: to one that is cut off at once nothing could be told.
            log.warning("refused a client: %s", error)
            self._refused[client] = error
            process = ProcessId(pid=UNKNOWN_PID, start_time=0)
        connection = Connection(client, process, sock)
        self._connections[client] = connection
        self._selector.register(sock, selectors.EVENT_READ, connection)
        self._keeper.connect(client, process)
        self._devices.requests.connect(client, process)

    def _serve(self, connection: Connection, events: int) -> None:
        if self._connections.get(connection.client) is not connection:
            return
        try:
            if events & selectors.EVENT_WRITE:
                connection.flush()
                self._watch_socket(connection)
            if events & selectors.EVENT_READ:
                self._receive(connection)
        except BlockingIOError:
            return
        except (OSError, StoreProtocolError) as error:
            self._drop(connection, str(error))

    def _receive(self, connection: Connection) -> None:
        requests = connection.receive()
        if requests is None:
            self._drop(connection, "closed")
            return
        for request in requests:
            self._handle(connection.client, request)

    def _watch_socket(self, connection: Connection) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.has_unsent else 0)
        self._selector.modify(connection.sock, wanted, connection)

    def _drop(self, connection: Connection, reason: str) -> None:
        if self._connections.pop(connection.client, None) is None:
            return
        log.debug("client %d left: %s", connection.client, reason)
        self._refused.pop(connection.client, None)
        self._selector.unregister(connection.sock)
        connection.close()
        self._resolver.cancel_all(connection.client)
        self._keeper.disconnect(connection.client, time.monotonic())
        self._devices.requests.disconnect(connection.client, time.monotonic())

    def _process_ended(self, client: int) -> None:
        self._keeper.process_ended(client, time.monotonic())
        self._devices.requests.process_ended(client, time.monotonic())

    # Requests

    def _handle(self, client: int, request: Request) -> None:
        self._guarded(client, request, lambda: self._dispatch(client, request))

    def _guarded(self, client: int, request: Request, act: Callable[[], None]) -> None:
        try:
            act()
        except LoaderError as error:
            self._refuse(client, request, error)
        except Exception as error:
            # A bug of ours must not end the store, which holds every worker's weights.
            shown = _shown(request)
            log.exception("request crashed: %s", shown)
            self._refuse(client, request, StoreError(f"the store failed at {shown}: {error!r}"))

    def _refuse(self, client: int, request: Request, error: LoaderError) -> None:
        request_id = 0 if isinstance(request, (Release, ReleaseDevice)) else request.id
        self.reply(client, Failed(id=request_id, error=type(error).__name__, message=str(error)))

    def _dispatch(self, client: int, request: Request) -> None:
        if client in self._refused:
            raise self._refused[client]
        now_s = time.monotonic()
        if isinstance(request, PathQuestion):
            self._open(client, request)
        elif isinstance(request, Unpin):
            self._keeper.unpin(client, request.id, known_as(request.path))
        elif isinstance(request, Evict):
            self._evict(client, request, now_s)
        elif isinstance(request, GetStatus):
            self._keeper.status(client, request.id)
        elif isinstance(request, MapArena):
            self.reply(client, self._arena_mapped(request), [self._parts.arena.client_fd()])
        elif isinstance(request, Reclaim):
            self._keeper.reclaim(client, request.id, request.arena_id, request.session, request.leases, now_s)
        elif isinstance(request, Cancel):
            self._cancel(client, request.id, now_s)
        elif isinstance(request, Release):
            self._keeper.release(client, request.image_id)
        else:
            self._dispatch_device(client, request, now_s)

    def _dispatch_device(self, client: int, request: ReclaimDevices | ReleaseDevice, now_s: float) -> None:
        if isinstance(request, ReclaimDevices):
            self._devices.requests.reclaim(client, request, now_s)
        else:
            self._devices.requests.release(client, request.image_id, now_s)

    def _open(self, client: int, request: PathQuestion) -> None:
        if not is_url(request.path):
            self._ask_keeper(client, request, Checkpoint.open(request.path))
            return

        def opened(checkpoint: Checkpoint) -> None:
            self._guarded(client, request, lambda: self._ask_keeper(client, request, checkpoint))

        self._resolver.open(client, request.id, request.path, opened, partial(self._refuse, client, request))

    def _ask_keeper(self, client: int, request: PathQuestion, checkpoint: Checkpoint) -> None:
        now_s = time.monotonic()
        if isinstance(request, Attach):
            if request.progress:
                self.expect_progress()
            self._keeper.attach(client, request.id, request.session, checkpoint, now_s, progress=request.progress)
        elif isinstance(request, AttachDevice):
            self._devices.requests.attach(client, request, checkpoint, now_s)
        elif isinstance(request, Prefetch):
            self._keeper.prefetch(client, request.id, checkpoint, now_s)
        elif isinstance(request, Pin):
            self._keeper.pin(client, request.id, checkpoint, now_s)
        else:
            assert isinstance(request, GetEstimate)
            self._estimate(client, request, checkpoint)

    def _estimate(self, client: int, request: GetEstimate, checkpoint: Checkpoint) -> None:
        ask = partial(
            self._keeper.estimate, request_id=request.id, checkpoint=checkpoint, tier=self._tier_of(checkpoint)
        )
        if request.device:
            estimate = self._devices.estimate(checkpoint, request.device, ask)
            self.reply(client, Estimated(id=request.id, estimate=estimate))
        else:
            ask(client)

    def _evict(self, client: int, request: Evict, now_s: float) -> None:
        path = known_as(request.path)
        on_devices = self._devices.requests.evictable(path)
        self._keeper.evict(client, request.id, path, now_s, on_devices=on_devices)
        self._devices.requests.evict(path)

    def _tier_of(self, checkpoint: Checkpoint) -> Tier:
        # A throttled reader does not look at the page cache, which all nodes of a machine share.
        is_throttled = bool(self._parts.throttles.ssd_bytes_per_second)
        return "ssd" if is_throttled and not checkpoint.is_remote else likely_tier(checkpoint)

    def _arena_mapped(self, request: MapArena) -> ArenaMapped:
        return ArenaMapped(id=request.id, arena_id=self._arena_id, bytes=self._parts.arena.bytes)

    def _cancel(self, client: int, request_id: int, now_s: float) -> None:
        if self._resolver.cancel(client, request_id):
            error = StoreCancelled("the request was cancelled; ask again if it is still wanted")
            self.reply(client, Failed(id=request_id, error=type(error).__name__, message=str(error)))
        elif not self._devices.requests.cancel(client, request_id, now_s):
            self._keeper.cancel(client, request_id, now_s)

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
        self._prefaulter.stop()
        self._work.close()
        self._devices.close()
        for connection in self._connections.values():
            connection.close()
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()


def _shown(request: Request) -> Request:
    """The request as it may be logged: a URL that was not checked yet may hold a secret."""
    if isinstance(request, PathQuestion | Unpin | Evict):
        return replace(request, path=without_secrets(request.path))
    return request
