"""Finding the files of a checkpoint that a request names by its URL; what names checkpoints go by.

A URL takes as long as its server does, so it is opened on a thread of its own and can be cancelled meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from .checkpoint import Checkpoint, as_checkpoint_error, canonical_path, is_url, remote_device
from .errors import LoaderError, StoreError
from .host_pool import HostPool, Ticket
from .remote.urls import parse_url, without_secrets

log = logging.getLogger("serverless_triton.store")

# What is done once a checkpoint is found, and what where it is not.
OnOpened = Callable[[Checkpoint], None]
OnFailed = Callable[[LoaderError], None]


class Opener(Protocol):
    """Finds checkpoints by URL. Called on several threads at once; may block."""

    def open(self, path: str) -> Checkpoint:
        """Raises LoaderError."""


class _Waiting(NamedTuple):
    on_opened: OnOpened
    on_failed: OnFailed
    ticket: Ticket


class Resolver:
    """Opens URLs for requests, known by client and request id. All but the opening happens on the loop.

    `post` has a function called on the loop.
    """

    def __init__(self, opener: Opener, post: Callable[[Callable[[], None]], None]) -> None:
        self._opener = opener
        self._post = post
        self._pool = HostPool()
        self._waiting: dict[tuple[int, int], _Waiting] = {}

    def open(self, client: int, request_id: int, path: str, on_opened: OnOpened, on_failed: OnFailed) -> None:
        """One of the two is called later, unless the request is cancelled. Raises RemoteUnavailable if many wait."""
        key = client, request_id
        ticket = self._pool.submit(remote_device(path), partial(self._open, key, path))
        self._waiting[key] = _Waiting(on_opened, on_failed, ticket)

    def cancel(self, client: int, request_id: int) -> bool:
        """Neither function will be called; False where that request does not wait here."""
        waiting = self._waiting.pop((client, request_id), None)
        if waiting is not None:
            self._pool.drop(waiting.ticket)
        return waiting is not None

    def cancel_all(self, client: int) -> None:
        for _, request_id in [key for key in self._waiting if key[0] == client]:
            self.cancel(client, request_id)

    def close(self) -> None:
        """Does not wait for what is being opened."""
        self._waiting.clear()
        self._pool.close()

    def _open(self, key: tuple[int, int], path: str) -> None:
        try:
            checkpoint = self._opener.open(path)
        except LoaderError as error:
            self._post(partial(self._fail, key, error))
        except Exception as error:
            # A bug of ours must not leave the request without an answer.
            shown = without_secrets(path)
            log.exception("opening crashed path=%s", shown)
            self._post(partial(self._fail, key, StoreError(f"opening {shown} failed: {error!r}")))
        else:
            self._post(partial(self._succeed, key, checkpoint))

    def _succeed(self, key: tuple[int, int], checkpoint: Checkpoint) -> None:
        if key in self._waiting:
            self._waiting.pop(key).on_opened(checkpoint)

    def _fail(self, key: tuple[int, int], error: LoaderError) -> None:
        if key in self._waiting:
            self._waiting.pop(key).on_failed(error)


def known_as(path: str) -> str:
    """The path by which a checkpoint is known to the store. Raises CheckpointUnreadable, RemoteUrlRefused."""
    url = parse_url(path, allow_http=True) if is_url(path) else None
    if url is not None and url.scheme != "file":
        return str(url)
    local = url.local_path if url is not None else path
    with as_checkpoint_error(local):
        return str(canonical_path(local))
