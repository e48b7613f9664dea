"""The remote tier as the store sees it: opens URLs, and loads each checkpoint from where its bytes are now.

The network's libraries are imported when the first URL is asked for: a store of local checkpoints never pays for them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import _core
from .checkpoint import Checkpoint, is_url
from .effects import LoadResult
from .errors import (
    CheckpointChanged,
    CheckpointCorrupted,
    CheckpointNotFound,
    CheckpointTruncated,
    CheckpointUnreadable,
    ChunkHashesInvalid,
    StoreError,
)
from .layout import Extent
from .remote.settings import RemoteSettings
from .remote.ssd_cache import SsdCache
from .store_status import SsdCacheStatus
from .work import Loader

if TYPE_CHECKING:
    from .remote.loader import RemoteLoader
    from .remote.opener import RemoteOpener

NO_CACHE = SsdCacheStatus(capacity_bytes=0, used_bytes=0, entries=0, urls=(), problem="")
# What a copy on the SSD can have that its original need not have.
COPY_ERRORS = (
    CheckpointChanged,
    CheckpointCorrupted,
    CheckpointNotFound,
    CheckpointTruncated,
    CheckpointUnreadable,
    ChunkHashesInvalid,
)
# For all writers together. With server.CLOSE_TIMEOUT_S before it, less than holder.GRACE_S.
CLOSE_TIMEOUT_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    opener: RemoteOpener
    loader: RemoteLoader


class RemoteTier:
    """Opener and Loader of a store.

    `local` loads from files, `copies` from what the `cache` has, which it always verifies: the network and the disk
    had a hand in it, and its hashes are our own. `cache` is None where no copies are kept.
    """

    def __init__(
        self,
        *,
        local: Loader,
        copies: Loader,
        arena: _core.Arena,
        verify: bool,
        cache: SsdCache | None,
        bytes_per_second: int,
    ) -> None:
        self._local = local
        self._copies = copies
        self._arena = arena
        self._verify = verify
        self._cache = cache
        self._bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._connected: _Network | None = None

    @property
    def cache_status(self) -> SsdCacheStatus:
        return self._cache.status if self._cache else NO_CACHE

    def open(self, path: str) -> Checkpoint:
        """The checkpoint at a URL. Raises CheckpointError, RemoteUnavailable."""
        return self._network().opener.open(path)

    def load(
        self,
        checkpoint: Checkpoint,
        extents: Sequence[Extent],
        job: _core.ReadJob,
        sink: _core.ChunkSink | None = None,
    ) -> LoadResult:
        """From local files, from a copy of remote ones, or over the network; the sink hears of every chunk.

        Raises what those raise.
        """
        if not is_url(checkpoint.path):
            return self._local.load(checkpoint, extents, job, sink)
        if checkpoint.is_remote or self._cache is None:
            return self._fetch(checkpoint, extents, job, sink)
        return self._load_copy(checkpoint, self._cache, extents, job, sink)

    def close(self) -> None:
        """Gives what is on its way to the SSD cache a moment to arrive there."""
        if self._connected:
            self._connected.loader.settle(CLOSE_TIMEOUT_S)
        if self._cache:
            self._cache.close()

    def _load_copy(
        self,
        checkpoint: Checkpoint,
        cache: SsdCache,
        extents: Sequence[Extent],
        job: _core.ReadJob,
        sink: _core.ChunkSink | None,
    ) -> LoadResult:
        """A copy that turns out to be bad is removed, and the original is fetched."""
        try:
            with cache.in_use(checkpoint):
                result = self._copies.load(checkpoint, extents, job, sink)
            if result.verified:
                return result
            cache.discard(checkpoint, "its hashes are gone")
        except COPY_ERRORS as error:
            cache.discard(checkpoint, str(error))
        if sink is not None:
            sink.restart()
        files = tuple(replace(file, cached_path="") for file in checkpoint.files)
        return self._fetch(replace(checkpoint, files=files), extents, job, sink)

    def _fetch(
        self, checkpoint: Checkpoint, extents: Sequence[Extent], job: _core.ReadJob, sink: _core.ChunkSink | None
    ) -> LoadResult:
        pieces = [[(piece.offset, piece.length) for piece in extent.pieces] for extent in extents]
        network = self._network()
        try:
            return network.loader.load(checkpoint, pieces, self._arena, job, verify=self._verify, sink=sink)
        except CheckpointChanged:
            network.opener.forget(checkpoint)
            raise

    def _network(self) -> _Network:
        with self._lock:
            if self._connected is None:
                self._connected = self._connect()
            return self._connected

    def _connect(self) -> _Network:
        from .remote.loader import RemoteLoader
        from .remote.opener import RemoteOpener

        try:
            settings = RemoteSettings.from_environment(bytes_per_second=self._bytes_per_second)
        except ValueError as error:
            raise StoreError(
                f"the store's environment cannot be used: {error}; correct it and start the store"
            ) from error
        return _Network(opener=RemoteOpener(settings, self._cache), loader=RemoteLoader(settings, self._cache))
