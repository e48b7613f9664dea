"""Threads that ask servers, a few for each, so that one that does not answer holds up nobody who asks another.

What is dropped before its turn gives its place free. Any thread may call any method.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from .errors import RemoteUnavailable

MAX_THREADS = 64
MAX_THREADS_OF_A_HOST = 8
MAX_WAITING_FOR_A_HOST = 256


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """Work for one host. `future` is None until it has its turn."""

    host: str
    work: Callable[[], None]
    future: Future[None] | None = None


class HostPool:
    """Work on one host is begun in the order in which it came."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(MAX_THREADS, "store-open")
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self._waiting: defaultdict[str, deque[Ticket]] = defaultdict(deque)

    def submit(self, host: str, work: Callable[[], None]) -> Ticket:
        """Has `work`, which raises nothing, done on a thread. Raises RemoteUnavailable where too much waits."""
        ticket = Ticket(host=host, work=work)
        with self._lock:
            if self._running[host] < MAX_THREADS_OF_A_HOST:
                self._begin(ticket)
            elif len(self._waiting[host]) < MAX_WAITING_FOR_A_HOST:
                self._waiting[host].append(ticket)
            else:
                raise RemoteUnavailable(
                    f"{MAX_WAITING_FOR_A_HOST} requests wait for answers of the same server already; check that it "
                    "answers, and ask again later"
                )
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Nobody wants it any more: it is not begun, if it has not been."""
        with self._lock:
            if ticket.future is None:
                self._waiting[ticket.host].remove(ticket)
            elif ticket.future.cancel():
                self._end(ticket.host)

    def close(self) -> None:
        """Begins nothing more; does not wait for what runs."""
        with self._lock:
            self._waiting.clear()
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, ticket: Ticket) -> None:
        try:
            ticket.work()
        finally:
            with self._lock:
                self._end(ticket.host)

    # With the lock

    def _begin(self, ticket: Ticket) -> None:
        self._running[ticket.host] += 1
        ticket.future = self._pool.submit(self._run, ticket)

    def _end(self, host: str) -> None:
        self._running[host] -= 1
        if self._waiting[host]:
            self._begin(self._waiting[host].popleft())
        if not self._running[host]:
            del self._running[host], self._waiting[host]
