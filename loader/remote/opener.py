"""From a URL to a Checkpoint: which files it means, how large they are, in which version, and whether they are cached.

Blocking; used by the store's resolver threads.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from ..checkpoint import (
    INDEX_NAME,
    MAX_INDEX_BYTES,
    PICKLE_SUFFIXES,
    SINGLE_NAME,
    Checkpoint,
    CheckpointFile,
    only_candidate,
    parse_shard_index,
    remote_device,
    unsafe_file,
)
from ..errors import CheckpointIndexInvalid, CheckpointNotFound, CheckpointTruncated, RemoteDenied, RemoteUnavailable
from .hub import HubRevision, is_commit, resolve_revision
from .objects import PROBE_BYTES, ObjectOpener
from .patience import Patience, asked_patiently
from .settings import RemoteSettings
from .ssd_cache import SsdCache
from .urls import RemoteUrl, parse_url

log = logging.getLogger("serverless_triton.store")

MAX_SHARDS = 10_000
MAX_KNOWN = 4096


class _Known(NamedTuple):
    checkpoint: Checkpoint
    until_s: float


class RemoteOpener:
    """Any thread may call it. `cache` is None where there is no SSD cache."""

    def __init__(
        self, settings: RemoteSettings, cache: SsdCache | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._clock = clock
        self._objects = ObjectOpener(settings)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: str) -> Checkpoint:
        """The checkpoint at a URL. One that was resolved a moment ago is not asked for again.

        A server that does not answer is no reason to fail where the SSD cache has a copy. Raises CheckpointError,
        RemoteUnavailable.
        """
        url = parse_url(path, allow_http=self._settings.allow_http)
        if url.scheme == "file":
            return Checkpoint.open(url.local_path)
        return self._located(self._current(url))

    def forget(self, checkpoint: Checkpoint) -> None:
        """What is known of it is not true any more: the next open() asks again."""
        with self._lock:
            self._known.pop(checkpoint.path, None)

    def _current(self, url: RemoteUrl) -> Checkpoint:
        name = str(url)
        with self._lock:
            known = self._known.get(name)
        if known and self._clock() < known.until_s:
            return known.checkpoint
        copy = self._cache.newest(name) if self._cache else None
        if copy and is_commit(url.revision):
            return copy
        try:
            checkpoint = asyncio.run(self._resolve(url))
        except RemoteUnavailable as error:
            if copy is None:
                raise
            log.warning("serving the cached copy unasked url=%s error=%s", name, error)
            return copy
        self._remember(name, checkpoint, is_final=is_commit(url.revision))
        return checkpoint

    def _remember(self, name: str, checkpoint: Checkpoint, *, is_final: bool) -> None:
        until_s = float("inf") if is_final else self._clock() + self._settings.freshness_s
        with self._lock:
            self._known[name] = _Known(checkpoint, until_s)
            self._known.move_to_end(name)
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    def _located(self, checkpoint: Checkpoint) -> Checkpoint:
        return self._cache.locate(checkpoint) if self._cache else checkpoint

    async def _resolve(self, url: RemoteUrl) -> Checkpoint:
        patience = Patience(self._settings.open_patience_s)
        if url.scheme == "hf":
            urls = await self._hub_files(url, patience)
        elif url.name.endswith(PICKLE_SUFFIXES):
            raise unsafe_file(str(url))
        elif url.name.endswith(".safetensors"):
            urls = [str(url)]
        else:
            return await self._directory(url, patience)
        return _checkpoint(url, await self._probed(urls, patience))

    async def _hub_files(self, url: RemoteUrl, patience: Patience) -> list[str]:
        revision = await asked_patiently(lambda: resolve_revision(url, self._settings), str(url), patience)
        if SINGLE_NAME in revision.names:
            return [revision.file_url(SINGLE_NAME)]
        if INDEX_NAME in revision.names:
            return await self._hub_shards(revision, patience)
        return [revision.file_url(only_candidate(revision.names, str(url)))]

    async def _hub_shards(self, revision: HubRevision, patience: Patience) -> list[str]:
        return [revision.file_url(name) for name in await self._shard_names(revision.file_url(INDEX_NAME), patience)]

    async def _directory(self, url: RemoteUrl, patience: Patience) -> Checkpoint:
        """Tries the two names that a checkpoint can have: an HTTP server cannot say what it has."""
        try:
            files = await self._probed([url.child(SINGLE_NAME)], patience)
        except (CheckpointNotFound, RemoteDenied) as error:
            files = await self._shards(url, patience, error)
        return _checkpoint(url, files)

    async def _shards(
        self, url: RemoteUrl, patience: Patience, no_single: CheckpointNotFound | RemoteDenied
    ) -> tuple[CheckpointFile, ...]:
        try:
            names = await self._shard_names(url.child(INDEX_NAME), patience)
        except CheckpointNotFound:
            if isinstance(no_single, RemoteDenied):
                raise no_single from None
            raise CheckpointNotFound(
                f"{url} has neither {SINGLE_NAME} nor {INDEX_NAME}; check the URL, or name one .safetensors file"
            ) from None
        return await self._probed([url.child(name) for name in names], patience)

    async def _shard_names(self, index: str, patience: Patience) -> list[str]:
        remote = self._objects.object_at(index)
        content = await asked_patiently(lambda: remote.read_whole(MAX_INDEX_BYTES), index, patience)
        names = parse_shard_index(content, index)
        if len(names) > MAX_SHARDS:
            raise CheckpointIndexInvalid(f"{index} names {len(names)} shards; at most {MAX_SHARDS} are loaded")
        return names

    async def _probed(self, urls: Sequence[str], patience: Patience) -> tuple[CheckpointFile, ...]:
        places = asyncio.Semaphore(self._settings.concurrency)
        return tuple(await asyncio.gather(*(self._file_at(url, places, patience) for url in urls)))

    async def _file_at(self, url: str, places: asyncio.Semaphore, patience: Patience) -> CheckpointFile:
        remote = self._objects.object_at(url)
        async with places:
            version = await asked_patiently(remote.probe, url, patience)
        if version.bytes < PROBE_BYTES:
            raise CheckpointTruncated(
                f"{url} has {version.bytes} bytes, too few for a safetensors file; upload it again"
            )
        return CheckpointFile(
            name=unquote(url.rsplit("/", 1)[-1]),
            real_path=url,
            bytes=version.bytes,
            mtime_ns=0,
            inode=0,
            etag=version.etag,
        )


def _checkpoint(url: RemoteUrl, files: tuple[CheckpointFile, ...]) -> Checkpoint:
    return Checkpoint(path=str(url), device=remote_device(str(url)), files=files)
