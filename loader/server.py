"""The store daemon's socket loop: accepts clients, turns frames into Keeper calls, carries out the Keeper's effects.

One thread runs the loop and owns the keeper and every connection. Two helper threads do what blocks, reading images and
giving memory back, and report through a queue that wakes the loop.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import count
from queue import SimpleQueue

from . import _core, link
from .cache import Image, ImageCache
from .checkpoint import Checkpoint, canonical_path
from .errors import LoaderError, StoreError, StoreProtocolError
from .keeper import Keeper
from .loading import LoadedImage, load_image
from .messages import (
    Attach,
    Cancel,
    Evict,
    Failed,
    GetEstimate,
    GetStatus,
    Pin,
    Prefetch,
    Release,
    Reply,
    Request,
    Tier,
    Unpin,
    decode_request,
    encode,
)
from .metrics import StoreSnapshot
from .residency import likely_tier

log = logging.getLogger("serverless_triton.store")

MAX_CLIENTS = 1024
# A client that does not read its replies is cut off rather than buffered for.
MAX_UNSENT_REPLIES = 256
SNAPSHOT_TIMEOUT_S = 5.0


class Connection:
    """One client: its socket, the frames that arrive, the replies that wait for room."""

    def __init__(self, client: int, sock: socket.socket) -> None:
        self.client = client
        self.sock = sock
        self.frames = link.FrameBuffer(link.MAX_REQUEST_BYTES)
        self._outbox: deque[tuple[memoryview, _core.MemoryFile | None]] = deque()

    @property
    def has_unsent(self) -> bool:
        return bool(self._outbox)

    def queue(self, message: Reply, memory: _core.MemoryFile | None) -> None:
        """The memory file stays open until its descriptor is sent. Raises StoreProtocolError for a stalled client."""
        if len(self._outbox) >= MAX_UNSENT_REPLIES:
            raise StoreProtocolError("a client does not read its replies")
        self._outbox.append((memoryview(link.frame(encode(message))), memory))

    def flush(self) -> None:
        """Sends what fits without blocking. Raises OSError where the client is gone."""
        while self._outbox:
            data, memory = self._outbox[0]
            try:
                sent = link.send(self.sock, data, [memory.fileno()] if memory else [])
            except BlockingIOError:
                return
            self._outbox.popleft()
            if sent < len(data):
                self._outbox.appendleft((data[sent:], None))


class StoreServer:
    """Serves one listening socket until stop(). Only stop() and snapshot() may be called from other threads."""

    def __init__(
        self, listener: socket.socket, *, dram_bytes: int, threads: int, bytes_per_second: int, verify: bool
    ) -> None:
        self._listener = listener
        self._verify = verify
        self._keeper = Keeper(ImageCache(dram_bytes), self, bytes_per_second)
        self._reader = _core.Reader(threads=threads, bytes_per_second=bytes_per_second)
        self._connections: dict[int, Connection] = {}
        self._client_ids = count(1)
        self._memories: dict[int, _core.MemoryFile] = {}
        self._jobs: dict[int, _core.ReadJob] = {}
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._loads: SimpleQueue[tuple[Image, _core.ReadJob] | None] = SimpleQueue()
        self._garbage: SimpleQueue[Image | None] = SimpleQueue()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._is_stopping = False

    def run(self) -> None:
        """Blocks until stop(); then cancels the running load, answers all who wait and closes everything."""
        helpers = [
            threading.Thread(target=self._load_loop, name="store-loader", daemon=True),
            threading.Thread(target=self._free_loop, name="store-free", daemon=True),
        ]
        for helper in helpers:
            helper.start()
        self._register()
        try:
            while not self._is_stopping:
                self._step()
        finally:
            self._shut_down(helpers)

    def stop(self) -> None:
        """Ends run() soon. Safe in signal handlers and from any thread, any number of times."""
        self._is_stopping = True
        self._wake()

    def snapshot(self) -> StoreSnapshot:
        """The store's state, taken between two requests. For other threads while run() runs; raises TimeoutError."""
        answer: Future[StoreSnapshot] = Future()
        self._post(lambda: answer.set_result(self._keeper.snapshot()))
        return answer.result(SNAPSHOT_TIMEOUT_S)

    # Effects of the keeper

    def reply(self, client: int, message: Reply, image_id: int | None = None) -> None:
        connection = self._connections.get(client)
        if connection is None:
            return
        try:
            connection.queue(message, None if image_id is None else self._memories[image_id])
            connection.flush()
        except (OSError, StoreProtocolError) as error:
            # The keeper is in the middle of a decision: the loop tells it about the loss afterwards.
            self._post(partial(self._drop, connection, str(error)))
            return
        self._watch(connection)

    def start_load(self, image: Image) -> None:
        job = self._jobs[image.id] = _core.ReadJob()
        log.info("load started path=%s bytes=%d", image.checkpoint.path, image.bytes)
        self._loads.put((image, job))

    def cancel_load(self, image: Image) -> None:
        self._jobs[image.id].cancel()

    def free(self, image: Image) -> None:
        log.info("evicting path=%s bytes=%d", image.checkpoint.path, image.bytes)
        self._garbage.put(image)

    def read_bytes(self, image: Image) -> int:
        job = self._jobs.get(image.id)
        return job.bytes_done if job else 0

    # The loop

    def _register(self) -> None:
        self._listener.setblocking(False)
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, None)

    def _step(self) -> None:
        for key, events in self._selector.select():
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wake_receiver:
                self._drain_wakes()
            else:
                self._serve(key.data, events)
        while not self._events.empty():
            self._events.get()()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            log.warning("cannot accept a client: %s", error)
            return
        sock.setblocking(False)
        uid = link.peer_uid(sock)
        if uid not in (os.geteuid(), 0) or len(self._connections) >= MAX_CLIENTS:
            log.warning("refused a client of user %d; %d are connected", uid, len(self._connections))
            sock.close()
            return
        connection = Connection(next(self._client_ids), sock)
        self._connections[connection.client] = connection
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _serve(self, connection: Connection, events: int) -> None:
        if self._connections.get(connection.client) is not connection:
            return
        try:
            if events & selectors.EVENT_WRITE:
                connection.flush()
                self._watch(connection)
            if events & selectors.EVENT_READ:
                self._receive(connection)
        except BlockingIOError:
            return
        except (OSError, StoreProtocolError) as error:
            self._drop(connection, str(error))

    def _receive(self, connection: Connection) -> None:
        data, fds = link.receive(connection.sock, 1)
        link.close_all(fds)
        if not data:
            self._drop(connection, "closed")
            return
        for payload in connection.frames.feed(data):
            self._handle(connection.client, decode_request(payload))

    def _handle(self, client: int, request: Request) -> None:
        try:
            self._dispatch(client, request, time.monotonic())
        except LoaderError as error:
            self._refuse(client, request, error)
        except Exception as error:
            # A bug of ours must not end the store, which holds every worker's weights.
            log.exception("request crashed: %s", request)
            self._refuse(client, request, StoreError(f"the store failed at {request}: {error!r}"))

    def _refuse(self, client: int, request: Request, error: LoaderError) -> None:
        request_id = 0 if isinstance(request, Release) else request.id
        self.reply(client, Failed(id=request_id, error=type(error).__name__, message=str(error)))

    def _dispatch(self, client: int, request: Request, now_s: float) -> None:
        if isinstance(request, Attach):
            self._keeper.attach(client, request.id, Checkpoint.open(request.path), now_s)
        elif isinstance(request, Prefetch):
            self._keeper.prefetch(client, request.id, Checkpoint.open(request.path), now_s)
        elif isinstance(request, Pin):
            self._keeper.pin(client, request.id, Checkpoint.open(request.path), now_s)
        elif isinstance(request, Unpin):
            self._keeper.unpin(client, request.id, str(canonical_path(request.path)))
        elif isinstance(request, Evict):
            self._keeper.evict(client, request.id, str(canonical_path(request.path)), now_s)
        elif isinstance(request, GetEstimate):
            self._estimate(client, request)
        elif isinstance(request, GetStatus):
            self._keeper.status(client, request.id)
        elif isinstance(request, Cancel):
            self._keeper.cancel(client, request.id, now_s)
        else:
            self._keeper.release(client, request.image_id)

    def _estimate(self, client: int, request: GetEstimate) -> None:
        checkpoint = Checkpoint.open(request.path)
        # A throttled reader does not look at the page cache, which all nodes of a machine share.
        tier: Tier = "ssd" if self._reader.bytes_per_second else likely_tier(checkpoint)
        self._keeper.estimate(client, request.id, checkpoint, tier)

    def _watch(self, connection: Connection) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.has_unsent else 0)
        self._selector.modify(connection.sock, wanted, connection)

    def _drop(self, connection: Connection, reason: str) -> None:
        if self._connections.pop(connection.client, None) is None:
            return
        log.debug("client %d left: %s", connection.client, reason)
        self._selector.unregister(connection.sock)
        connection.sock.close()
        self._keeper.disconnect(connection.client, time.monotonic())

    # Events from the helper threads

    def _post(self, event: Callable[[], None]) -> None:
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

    def _load_loop(self) -> None:
        while (task := self._loads.get()) is not None:
            self._post(self._outcome_of(*task))

    def _outcome_of(self, image: Image, job: _core.ReadJob) -> Callable[[], None]:
        try:
            loaded = load_image(image.checkpoint, image.layout, self._reader, job, verify=self._verify)
        except LoaderError as error:
            return partial(self._on_failed, image, error)
        except Exception as error:
            # A bug of ours must not silence the loader: the waiters learn of it and the next load runs.
            log.exception("load crashed path=%s", image.checkpoint.path)
            return partial(self._on_failed, image, StoreError(f"loading {image.checkpoint.path} failed: {error!r}"))
        return partial(self._on_loaded, image, loaded)

    def _on_loaded(self, image: Image, loaded: LoadedImage) -> None:
        self._memories[image.id] = loaded.memory
        self._jobs.pop(image.id)
        result = loaded.result
        log.info("load finished path=%s tier=%s verified=%s", image.checkpoint.path, result.tier, result.verified)
        self._keeper.load_finished(result, time.monotonic())

    def _on_failed(self, image: Image, error: LoaderError) -> None:
        self._jobs.pop(image.id)
        log.warning("load failed path=%s error=%s: %s", image.checkpoint.path, type(error).__name__, error)
        self._keeper.load_failed(error, time.monotonic())

    def _free_loop(self) -> None:
        while (image := self._garbage.get()) is not None:
            self._memories.pop(image.id)
            self._post(partial(self._on_freed, image))

    def _on_freed(self, image: Image) -> None:
        self._keeper.freed(image, time.monotonic())

    def _shut_down(self, helpers: list[threading.Thread]) -> None:
        self._keeper.shut_down()
        self._loads.put(None)
        self._garbage.put(None)
        for helper in helpers:
            helper.join(timeout=5)
        for connection in self._connections.values():
            connection.sock.close()
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()
