"""How many bytes of clients' requests the gateway holds at a time, over all ports and clients.

Each message has a limit of its own, and so has the number of calls; their product is more than any machine has. So what
is held is counted: a body while it is read, a message from when it is there, and both until their request has ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from aiohttp import web

from serverless_triton.scheduler.errors import Overloaded

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_RETRY_AFTER_S = 1.0


class MessageBudget:
    """At most `limit_bytes` of requests at the same time."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    @contextmanager
    def share(self, count: int = 0) -> Iterator[MessageShare]:
        """Of one request: what it holds is given back at the end. Raises Overloaded where `count` is too much."""
        share = MessageShare(self)
        try:
            share.add(count)
            yield share
        finally:
            self.held_bytes -= share.held_bytes

    def take(self, count: int) -> None:
        """Raises Overloaded where there is no room for so many bytes more."""
        if count > self._limit_bytes - self.held_bytes:
            words = f"the requests that are being served hold all of {self._limit_bytes} bytes that there are for them"
            raise Overloaded(f"{words}; try again later", retry_after_s=_RETRY_AFTER_S)
        self.held_bytes += count

    @property
    def middleware(self) -> Any:
        """For an HTTP application and those below it: a share for each request, which `http_share` finds."""

        @web.middleware
        async def hold(request: web.Request, handler: Handler) -> web.StreamResponse:
            with self.share() as share:
                _current.set(share)
                return await handler(request)

        return hold


class MessageShare:
    """What one request holds of it."""

    def __init__(self, budget: MessageBudget) -> None:
        self._budget = budget
        self.held_bytes = 0

    def add(self, count: int) -> None:
        """Raises Overloaded."""
        self._budget.take(count)
        self.held_bytes += count


_current: ContextVar[MessageShare] = ContextVar("message_share")


def http_share() -> MessageShare:
    """That of the HTTP request that the current task serves."""
    return _current.get()
