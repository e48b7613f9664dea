"""What the disk and the GPU driver answer in their own time, looked up on threads beside the loop.

A path on a mount that hangs keeps a thread for as long as the mount hangs. Who asks about the same path meanwhile
waits behind it without a thread, so retries take no more threads from the others.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from .errors import LoaderError, StoreError, StoreUnavailable
from .remote.urls import without_secrets

log = logging.getLogger("serverless_triton.store")

# Paths that hang at the same time before others have to wait, too.
MAX_LOOKING = 64
# Of one client; one that keeps to the protocol waits for one at a time on each of its threads.
MAX_WAITING = 256

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Lookup:
    """`look` blocks, and returns what the loop does then."""

    client: int
    request_id: int
    subject: str
    look: Callable[[], Callable[[], None]]
    on_failed: Callable[[LoaderError], None]


class Lookups:
    """Questions of clients that take a look at something slow. All but the looking happens on the loop.

    `post` has a function called on the loop.
    """

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        self._post = post
        self._pool = ThreadPoolExecutor(MAX_LOOKING, "store-look")
        # By client.
        self._waiting: dict[int, list[_Lookup]] = {}
        # By subject; the first of each queue has a thread.
        self._queues: dict[str, deque[_Lookup]] = {}

    def ask(
        self,
        client: int,
        request_id: int,
        subject: str,
        look: Callable[[], Found],
        on_found: Callable[[Found], None],
        on_failed: Callable[[LoaderError], None],
    ) -> None:
        """Has `look` called on a thread, after those about the same subject; on_found or on_failed follows on the loop.

        Neither follows once the request is cancelled. Raises StoreUnavailable where the client asked too much at once.
        """
        waiting = self._waiting.setdefault(client, [])
        if len(waiting) >= MAX_WAITING:
            raise StoreUnavailable(f"{MAX_WAITING} requests of this client wait for their files; ask again later")
        lookup = _Lookup(
            client=client,
            request_id=request_id,
            subject=subject,
            look=lambda: partial(on_found, look()),
            on_failed=on_failed,
        )
        waiting.append(lookup)
        queue = self._queues.setdefault(subject, deque())
        queue.append(lookup)
        if len(queue) == 1:
            self._pool.submit(self._look, lookup)

    def cancel(self, client: int, request_id: int) -> bool:
        """Neither function will be called; False where that request does not wait here."""
        cancelled = [lookup for lookup in self._waiting.get(client, ()) if lookup.request_id == request_id]
        for lookup in cancelled:
            self._forget(lookup)
        return bool(cancelled)

    def cancel_all(self, client: int) -> None:
        for lookup in list(self._waiting.get(client, ())):
            self._forget(lookup)

    def close(self) -> None:
        """Does not wait for who is looking."""
        self._waiting.clear()
        self._queues.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _look(self, lookup: _Lookup) -> None:
        try:
            answer = lookup.look()
        except LoaderError as error:
            answer = partial(lookup.on_failed, error)
        except Exception as error:
            # A bug of ours must not leave the request without an answer.
            shown = without_secrets(lookup.subject)
            log.exception("looking crashed subject=%s", shown)
            answer = partial(lookup.on_failed, StoreError(f"looking at {shown} failed: {error!r}"))
        self._post(partial(self._ended, lookup, answer))

    def _ended(self, lookup: _Lookup, answer: Callable[[], None]) -> None:
        queue = self._queues.get(lookup.subject)
        if queue is None:  # closed meanwhile
            return
        queue.popleft()
        if queue:
            self._pool.submit(self._look, queue[0])
        else:
            del self._queues[lookup.subject]
        if lookup in self._waiting.get(lookup.client, ()):
            self._forget(lookup)
            answer()

    def _forget(self, lookup: _Lookup) -> None:
        waiting = self._waiting[lookup.client]
        waiting.remove(lookup)
        if not waiting:
            del self._waiting[lookup.client]
        queue = self._queues.get(lookup.subject)
        if queue and lookup is not queue[0] and lookup in queue:
            queue.remove(lookup)
