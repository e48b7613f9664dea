"""A client's end of the store's socket: frames out from any thread and from finalizers, replies in to one thread.

It neither reconnects nor knows what the messages mean to their sender; session.py does.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from . import link
from .deadline import Deadline
from .errors import StoreUnavailable
from .messages import decode_reply, encode
from .replies import Progress, Reply
from .requests import Request
from .wake import Wake

CONNECT_RETRY_S = 0.01

OnProgress = Callable[[int, int], None]


class Interrupted(Exception):
    """What was waited for was ended by its Wake."""


class StoreLink:
    """One connection. Any thread may post while another, whose the link is, sends, waits and at last closes it."""

    def __init__(self, path: str, connect_timeout_s: float, wake: Wake | None) -> None:
        """Waits for a store that is just starting. Raises StoreUnavailable, Interrupted."""
        self._path = path
        self._frames = link.FrameBuffer(link.MAX_REPLY_BYTES)
        self._outbox: deque[memoryview] = deque()
        self._sending = threading.Lock()
        self._is_lost = False
        self._sock = _connect(path, connect_timeout_s, wake)

    def __del__(self) -> None:
        if hasattr(self, "_sock"):
            self.close()

    def is_lost(self) -> bool:
        """Whether the store has closed it; to be asked while no reply is under way."""
        return self._is_lost or self._is_ready(select.POLLIN, 0.0, None)

    def send(self, request: Request, timeout_s: float, wake: Wake | None) -> None:
        """Raises StoreUnavailable where the store is gone or takes nothing for that long, and Interrupted."""
        deadline = Deadline(timeout_s)
        with self._sending:
            self._outbox.append(_frame(request))
            try:
                while not self._send_now():
                    if not self._is_ready(select.POLLOUT, deadline.left_s, wake):
                        raise self.lost()
            except OSError as error:
                raise self.lost() from error
        self._drain()

    def post(self, request: Request) -> bool:
        """Sends without blocking, now or with the next send(); False where the store is gone.

        May be called by finalizers, in whichever thread and place they run.
        """
        if not self._is_lost:
            self._outbox.append(_frame(request))
            self._drain()
        return not self._is_lost

    def wait(
        self, request_id: int, deadline: Deadline, wake: Wake | None, on_progress: OnProgress | None = None
    ) -> tuple[Reply, list[int]]:
        """The reply to that request and the descriptors that came meanwhile, which are the caller's to close.

        Raises TimeoutError, Interrupted, StoreUnavailable, and whatever on_progress raises.
        """
        fds: list[int] = []
        try:
            while True:
                for reply in self._receive(deadline.left_s, wake, fds):
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

    def close(self) -> None:
        self._is_lost = True
        self._sock.close()

    def lost(self) -> StoreUnavailable:
        """Closes the link; the error says so."""
        self.close()
        return StoreUnavailable(
            f"the store at {self._path} closed the connection; ask again, and check whether it is running"
        )

    def _receive(self, timeout_s: float, wake: Wake | None, fds: list[int]) -> list[Reply]:
        if not self._is_ready(select.POLLIN, timeout_s, wake):
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
        while self._outbox and self._sending.acquire(blocking=False):
            try:
                if not self._send_or_lose():
                    return
            finally:
                self._sending.release()

    def _send_or_lose(self) -> bool:
        """As _send_now(), but a loss is only noted: another thread may wait in the socket, and finds out there."""
        try:
            return self._send_now()
        except OSError:
            self._is_lost = True
            self._outbox.clear()
            return True

    def _send_now(self) -> bool:
        """Sends what fits; False where something is left. Raises OSError."""
        while self._outbox:
            data = self._outbox[0]
            try:
                sent = self._sock.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            if sent < len(data):
                self._outbox[0] = data[sent:]
            else:
                self._outbox.popleft()
        return True

    def _is_ready(self, events: int, timeout_s: float, wake: Wake | None) -> bool:
        """Whether the socket is, in time. Raises Interrupted."""
        return _poll({self._sock.fileno(): events}, timeout_s, wake)


def _frame(request: Request) -> memoryview:
    return memoryview(link.frame(encode(request)))


def _connect(path: str, timeout_s: float, wake: Wake | None) -> socket.socket:
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
        _poll({}, CONNECT_RETRY_S, wake)


def _poll(events: Mapping[int, int], timeout_s: float, wake: Wake | None) -> bool:
    """Whether one of these descriptors is ready in time. Raises Interrupted."""
    poll = select.poll()
    for descriptor, wanted in events.items():
        poll.register(descriptor, wanted)
    if wake is not None:
        poll.register(wake.descriptor, select.POLLIN)
    ready = [descriptor for descriptor, _ in poll.poll(timeout_s * 1000)]
    if wake is not None and wake.descriptor in ready:
        raise Interrupted
    return bool(ready)
