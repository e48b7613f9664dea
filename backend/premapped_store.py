"""A worker's connection to its store, opened before the worker knows its model.

Mapping a whole arena costs a page fault for each of its pages. A worker that was forked ahead pays that while nobody
waits; what is loaded later lies in pages that it has mapped already.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from serverless_triton.loader.errors import LoaderError

if TYPE_CHECKING:
    from serverless_triton.loader.client import Store

logger = logging.getLogger(__name__)

STORE_TIMEOUT_S = 600.0
# A store that starts beside its first workers is up by then; one that does not come is asked for again by the load.
PATIENCE_S = 30.0


class PremappedStore:
    """One connection, opened and mapped on a thread of its own. Any thread may call its members."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._is_taken = False

    def open_ahead(self, wait_s: float) -> None:
        """Begins, and returns when all is mapped or after `wait_s`; the rest goes on in the background."""
        thread = threading.Thread(target=self._open, name="store-premap", daemon=True)
        thread.start()
        thread.join(wait_s)

    def take(self) -> Store:
        """The connection, the caller's from now on; a new one where none is open yet. Raises StoreUnavailable."""
        from serverless_triton.loader.client import Store

        with self._lock:
            self._is_taken = True
            if self._store is not None:
                return self._store
        return Store(self._socket_path, timeout_s=STORE_TIMEOUT_S)

    def _open(self) -> None:
        from serverless_triton.loader.client import Store

        try:
            store = Store(self._socket_path, timeout_s=STORE_TIMEOUT_S, connect_timeout_s=PATIENCE_S)
            with self._lock:
                if self._is_taken:
                    store.close()
                    return
                self._store = store
            store.premap()
        except (LoaderError, OSError) as error:
            logger.info("premap_failed error=%s", error)
