"""A client's end of the store's socket: frames out from any thread and from finalizers, replies in to one thread.

It neither reconnects nor knows what the messages mean to their sender; session.py does.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from . import link
from .deadline import Deadline
from .errors import StoreUnavailable
from .messages import decode_reply, encode
from .replies import Progress, Reply
from .requests import Request

CONNECT_RETRY_S = 0.01

OnProgress = Callable[[int, int], None]


class Interrupted(Exception):
    """wait() was ended by interrupt()."""


class StoreLink:
    """One connection. A thread may wait in it while others send, interrupt or close it."""

    def __init__(self, path: str, connect_timeout_s: float) -> None:
        """Waits for a store that is just starting. Raises StoreUnavailable."""
        self._path = path
        self._frames = link.FrameBuffer(link.MAX_REPLY_BYTES)
        self._outbox: deque[memoryview] = deque()
        self._sending = threading.Lock()
        self._is_closed = False
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_sender.setblocking(False)
        try:
            self._sock = _connect(path, connect_timeout_s)
        except BaseException:
            self._is_closed = True
            self._close_wakes()
            raise

    def __del__(self) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        return not self._is_closed

    def is_lost(self) -> bool:
        """Whether the store has closed it; to be asked while no reply is under way."""
        return self._is_closed or bool(_poll(self._sock.fileno(), select.POLLIN, 0.0))

    def send(self, request: Request, timeout_s: float) -> None:
        """Raises StoreUnavailable where the store is gone or takes nothing for that long."""
        deadline_s = time.monotonic() + timeout_s
        with self._sending:
            self._outbox.append(_frame(request))
            while not self._send_now():
                if not _poll(self._sock.fileno(), select.POLLOUT, deadline_s - time.monotonic()):
                    raise self.lost()
        self._drain()

    def post(self, request: Request) -> None:
        """Sends without blocking, now or with the next send(). Does nothing where the store is gone.

        May be called by finalizers, in whichever thread and place they run.
        """
        if not self._is_closed:
            self._outbox.append(_frame(request))
            self._drain()

    def wait(self, request_id: int, deadline: Deadline, on_progress: OnProgress | None) -> tuple[Reply, list[int]]:
        """The reply to that request and the descriptors that came meanwhile, which are the caller's to close.

        Raises TimeoutError, Interrupted, StoreUnavailable, and whatever on_progress raises.
        """
        fds: list[int] = []
        try:
            while True:
                for reply in self._receive(deadline.left_s, fds):
                    if not isinstance(reply, Progress):
                        if reply.id in (0, request_id):
                            return reply, fds
                    elif reply.id == request_id:
                        deadline.hear(reply)
                        if on_progress is not None:
                            on_progress(reply.bytes_done, reply.bytes_total)
        except BaseException:
            link.close_all(fds)
            raise

    def interrupt(self) -> None:
        """Ends a wait(), the next one if none is under way."""
        with contextlib.suppress(OSError):  # full, or closed: nobody waits, or will be woken anyway
            self._wake_sender.send(b"\0")

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._outbox.clear()
            self._sock.close()
            self._close_wakes()

    def lost(self) -> StoreUnavailable:
        """Closes the link; the error says so."""
        self.close()
        return StoreUnavailable(
            f"the store at {self._path} closed the connection; ask again, and check whether it is running"
        )

    def _receive(self, timeout_s: float, fds: list[int]) -> list[Reply]:
        wake = self._wake_receiver.fileno()
        ready = _poll_both(self._sock.fileno(), wake, timeout_s)
        if wake in ready:
            self._wake_receiver.recv(1024)
            raise Interrupted
        if not ready:
            raise TimeoutError
        try:
            data, more_fds = link.receive(self._sock, 1)
        except BlockingIOError:
            return []
        except OSError as error:
            raise self.lost() from error
        fds += more_fds
        if not data:
            raise self.lost()
        return [decode_reply(payload) for payload in self._frames.feed(data)]

    def _drain(self) -> None:
        # Who has the lock looks again after giving it back, so nothing is left behind by one who did not get it.
        with contextlib.suppress(StoreUnavailable):
            while self._outbox and self._sending.acquire(blocking=False):
                try:
                    if not self._send_now():
                        return
                finally:
                    self._sending.release()

    def _send_now(self) -> bool:
        """Sends what fits; False where something is left. Raises StoreUnavailable."""
        while self._outbox and not self._is_closed:
            data = self._outbox[0]
            try:
                sent = self._sock.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError as error:
                raise self.lost() from error
            if sent < len(data):
                self._outbox[0] = data[sent:]
            else:
                self._outbox.popleft()
        if self._is_closed:
            raise self.lost()
        return True

    def _close_wakes(self) -> None:
        self._wake_receiver.close()
        self._wake_sender.close()


def _frame(request: Request) -> memoryview:
    return memoryview(link.frame(encode(request)))


def _connect(path: str, timeout_s: float) -> socket.socket:
    deadline_s = time.monotonic() + timeout_s
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(path)
            sock.setblocking(False)
            return sock
        except OSError as error:
            sock.close()
            is_starting = isinstance(error, (FileNotFoundError, ConnectionRefusedError, BlockingIOError))
            if not is_starting or time.monotonic() > deadline_s:
                raise StoreUnavailable(
                    f"no store answers at {path} ({error.strerror or error}); start one with `serverless-triton store "
                    f"serve --socket {path}`, or check the path"
                ) from error
        time.sleep(CONNECT_RETRY_S)


def _poll(descriptor: int, events: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


def _poll_both(first: int, second: int, timeout_s: float) -> list[int]:
    poll = select.poll()
    poll.register(first, select.POLLIN)
    poll.register(second, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(max(0.0, timeout_s) * 1000)]
