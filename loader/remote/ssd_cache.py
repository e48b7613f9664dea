"""The SSD cache of remote checkpoints: one directory a node, under a quota, least recently used entries first to go.

    DIR/lock             held by the one store that uses the directory
    DIR/partial/KEY/     entries being filled (partial_entry.py); kept over restarts, never served
    DIR/entries/KEY/     complete ones: manifest.json, the files, their hashes beside them
    DIR/removed/         what is being deleted (removals.py)

An entry comes into entries/ and leaves it by a rename, so at every moment it is there whole or not at all. Entries
that a load is using or filling are never removed. What could not be removed counts against the
quota. Any thread may call any method.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from ..checkpoint import Checkpoint, disk_of
from ..chunk_hashes import SUFFIX
from ..errors import StoreError
from ..lock_file import open_lock_file
from ..store_status import SsdCacheStatus
from .manifest import Manifest, parse_manifest
from .partial_entry import MANIFEST_NAME, PartialEntry, sync_directory
from .removals import Removals

log = logging.getLogger("serverless_triton.store")


@dataclass(slots=True, kw_only=True)
class _Entry:
    manifest: Manifest
    is_complete: bool
    last_used: int
    users: int = 0


class SsdCache:
    """Raises StoreError where the directory cannot be used, or another store uses it."""

    def __init__(self, directory: Path, capacity_bytes: int) -> None:
        self._directory = directory.absolute()
        self._capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._uses = count(1)
        self._removals = Removals(self._directory / "removed")
        self._problem = ""
        try:
            self._open()
        except OSError as error:
            raise StoreError(f"cannot use {directory} as an SSD cache ({error}); choose another --cache-dir") from error

    @property
    def status(self) -> SsdCacheStatus:
        with self._lock:
            complete = [entry.manifest.url for entry in self._entries.values() if entry.is_complete]
            return SsdCacheStatus(
                capacity_bytes=self._capacity_bytes,
                used_bytes=self._used(),
                entries=len(complete),
                urls=tuple(sorted(set(complete))),
                problem="; ".join(filter(None, (self._problem, self._removals.problem))),
            )

    def locate(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint, with the place of every file where all are cached."""
        manifest = Manifest.of(checkpoint)
        with self._lock:
            entry = self._entries.get(manifest.key)
            if entry is None or not entry.is_complete:
                return checkpoint
            self._touch(manifest.key, entry)
        directory = self._directory / "entries" / manifest.key
        files = (replace(file, cached_path=str(directory / file.name)) for file in checkpoint.files)
        return Checkpoint(path=checkpoint.path, device=self._device, files=tuple(files))

    def newest(self, url: str) -> Checkpoint | None:
        """The version of a checkpoint that was used last, among those that are complete."""
        with self._lock:
            known = [entry for entry in self._entries.values() if entry.is_complete and entry.manifest.url == url]
        if not known:
            return None
        return self.locate(max(known, key=lambda entry: entry.last_used).manifest.checkpoint)

    @contextmanager
    def in_use(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Nothing removes the checkpoint's entry meanwhile."""
        key = Manifest.of(checkpoint).key
        with self._lock:
            entry = self._entries.get(key)
            if entry:
                entry.users += 1
        try:
            yield
        finally:
            with self._lock:
                if entry:
                    entry.users -= 1

    def begin(self, checkpoint: Checkpoint) -> PartialEntry | None:
        """An entry to fill, or to go on filling; None where there is one already, no room, or a disk that refuses.

        complete() or abandon() must follow.
        """
        manifest = Manifest.of(checkpoint)
        if self._removals.left_bytes:
            self._removals.clear()
        with self._lock:
            entry = self._entries.get(manifest.key)
            if entry and (entry.is_complete or entry.users):
                return None
            self._removals.retry()
            victims = self._victims_for(manifest, entry)
            if victims is None:
                return None
            for key in victims:
                self._drop(key)
            entry = self._entries.setdefault(manifest.key, _new(manifest))
            entry.users += 1
            self._touch(manifest.key, entry)
            place = self._directory / "partial" / manifest.key
            self._removals.forget(place)  # what could not be removed goes on to be used
        self._removals.clear()
        try:
            return PartialEntry(place, manifest)
        except OSError as error:
            self._give_up(manifest.key, f"cannot cache {manifest.url}: {error}")
            return None

    def complete(self, partial: PartialEntry) -> None:
        """Everything is there: from now on it is served. Raises OSError."""
        partial.finish()
        key = partial.manifest.key
        self._publish(key)
        with self._lock:
            entry = self._entries[key]
            entry.is_complete, entry.users = True, entry.users - 1
            self._problem = ""
            self._touch(key, entry)
        log.info("cached url=%s bytes=%d", partial.manifest.url, partial.manifest.total_bytes)

    def abandon(self, partial: PartialEntry, problem: str = "") -> None:
        """Stops filling. What is there is kept for the next time, unless there is a problem with it."""
        if problem:
            self._give_up(partial.manifest.key, f"stopped caching {partial.manifest.url}: {problem}")
            return
        with self._lock:
            self._entries[partial.manifest.key].users -= 1

    def discard(self, checkpoint: Checkpoint, problem: str) -> None:
        """Removes an entry whose bytes are not what they should be."""
        key = Manifest.of(checkpoint).key
        with self._lock:
            entry = self._entries.get(key)
            if entry and entry.is_complete:
                self._drop(key)
            self._report(f"removed the copy of {checkpoint.path}: {problem}")
        self._removals.clear()

    def close(self) -> None:
        """Another store may use the directory. Nothing may use this object any more."""
        self._lock_file.close()

    def _open(self) -> None:
        for name in ("entries", "partial", "removed"):
            (self._directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._device = disk_of(self._directory)
        self._lock_file = open_lock_file(self._directory / "lock")  # held until close()
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise StoreError(f"another store uses the SSD cache {self._directory}; give each its own") from error
        self._removals.clear()
        found = [(path, kind == "entries") for kind in ("entries", "partial") for path in self._paths(kind)]
        for path, is_complete in sorted(found, key=_last_used_ns):
            self._adopt(path, is_complete=is_complete)

    def _publish(self, key: str) -> None:
        """Without the lock, which nobody should wait for while the disk is: an entry in use stays where it is."""
        target = self._directory / "entries" / key
        if not self._removals.take(target):
            raise FileExistsError(errno.EEXIST, f"{target} is in the way and cannot be removed")
        (self._directory / "partial" / key).replace(target)
        try:
            sync_directory(self._directory / "entries")
            sync_directory(self._directory / "partial")
        except OSError:
            self._removals.take(target)
            raise

    def _paths(self, kind: str) -> Iterator[Path]:
        return (self._directory / kind).iterdir()

    def _adopt(self, path: Path, *, is_complete: bool) -> None:
        manifest = _manifest_in(path)
        if manifest is None or manifest.key != path.name or (is_complete and not _is_whole(path, manifest)):
            log.warning("removing what is no cache entry path=%s", path)
            self._removals.take(path)
            self._removals.clear()
            return
        entry = _Entry(manifest=manifest, is_complete=is_complete, last_used=next(self._uses))
        self._entries[manifest.key] = entry

    def _victims_for(self, manifest: Manifest, own: _Entry | None) -> list[str] | None:
        missing = self._used() + (0 if own else manifest.total_bytes) - self._capacity_bytes
        victims = []
        for key, entry in sorted(self._entries.items(), key=lambda item: item[1].last_used):
            if missing <= 0:
                break
            if entry.users or entry is own:
                continue
            victims.append(key)
            missing -= entry.manifest.total_bytes
        if missing > 0:
            self._report(
                f"{manifest.url} is not cached: its {manifest.total_bytes} bytes do not fit beside what is in use; the "
                f"quota is {self._capacity_bytes} bytes (--cache-bytes)"
            )
            return None
        return victims

    def _used(self) -> int:
        return sum(entry.manifest.total_bytes for entry in self._entries.values()) + self._removals.left_bytes

    def _touch(self, key: str, entry: _Entry) -> None:
        entry.last_used = next(self._uses)
        place = self._directory / ("entries" if entry.is_complete else "partial") / key / MANIFEST_NAME
        try:
            os.utime(place)
        except OSError as error:
            log.debug("cannot note the use of a cache entry path=%s error=%s", place, error)

    def _give_up(self, key: str, problem: str) -> None:
        with self._lock:
            self._drop(key)
            self._report(problem)
        self._removals.clear()

    def _report(self, problem: str) -> None:
        self._problem = problem
        log.warning("ssd cache: %s", problem)

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key)
        log.info("removing from the ssd cache url=%s bytes=%d", entry.manifest.url, entry.manifest.total_bytes)
        self._removals.take(self._directory / ("entries" if entry.is_complete else "partial") / key)


def _new(manifest: Manifest) -> _Entry:
    return _Entry(manifest=manifest, is_complete=False, last_used=0)


def _manifest_in(path: Path) -> Manifest | None:
    try:
        return parse_manifest((path / MANIFEST_NAME).read_bytes())
    except OSError:
        return None


def _is_whole(path: Path, manifest: Manifest) -> bool:
    def has(file: Path, size_bytes: int | None) -> bool:
        return file.is_file() and not file.is_symlink() and size_bytes in (None, file.stat().st_size)

    return all(
        has(path / file.name, file.bytes) and has(path / f"{file.name}{SUFFIX}", None) for file in manifest.files
    )


def _last_used_ns(found: tuple[Path, bool]) -> tuple[int, str]:
    path, _ = found
    try:
        return (path / MANIFEST_NAME).stat().st_mtime_ns, path.name
    except OSError:
        return 0, path.name
