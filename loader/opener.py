"""Finding the files of a checkpoint that a request names by its URL; what names checkpoints go by.

A URL takes as long as its server does, so it is opened on a thread of its own and can be cancelled meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from .checkpoint import Checkpoint, as_checkpoint_error, canonical_path, is_url
from .errors import LoaderError, StoreError
from .remote.urls import parse_url, without_secrets

log = logging.getLogger("serverless_triton.store")

MAX_OPENING = 8

# What is done once a checkpoint is found, and what where it is not.
OnOpened = Callable[[Checkpoint], None]
OnFailed = Callable[[LoaderError], None]


class Opener(Protocol):
    """Finds checkpoints by URL. Called on several threads at once; may block."""

    def open(self, path: str) -> Checkpoint:
        """Raises LoaderError."""


class Resolver:
    """Opens URLs for requests, known by client and request id. All but the opening happens on the loop.

    `post` has a function called on the loop.
    """

    def __init__(self, opener: Opener, post: Callable[[Callable[[], None]], None]) -> None:
        self._opener = opener
        self._post = post
        self._pool = ThreadPoolExecutor(MAX_OPENING, "store-open")
        self._waiting: dict[tuple[int, int], tuple[OnOpened, OnFailed]] = {}

    def open(self, client: int, request_id: int, path: str, on_opened: OnOpened, on_failed: OnFailed) -> None:
        """One of the two is called later, unless the request is cancelled."""
        key = client, request_id
        self._waiting[key] = on_opened, on_failed
        self._pool.submit(self._open, key, path)

    def cancel(self, client: int, request_id: int) -> bool:
        """Neither function will be called; False where that request does not wait here."""
        return self._waiting.pop((client, request_id), None) is not None

    def cancel_all(self, client: int) -> None:
        for key in [key for key in self._waiting if key[0] == client]:
            del self._waiting[key]

    def close(self) -> None:
        """Does not wait for what is being opened."""
        self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

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
            self._waiting.pop(key)[0](checkpoint)

    def _fail(self, key: tuple[int, int], error: LoaderError) -> None:
        if key in self._waiting:
            self._waiting.pop(key)[1](error)


def known_as(path: str) -> str:
    """The path by which a checkpoint is known to the store. Raises CheckpointUnreadable, RemoteUrlRefused."""
    url = parse_url(path, allow_http=True) if is_url(path) else None
    if url is not None and url.scheme != "file":
        return str(url)
    local = url.local_path if url is not None else path
    with as_checkpoint_error(local):
        return str(canonical_path(local))
