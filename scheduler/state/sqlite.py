"""State in one SQLite file, of one scheduler: the default. SQLite runs in a thread of its own.

The file is locked as long as it is open, so its scheduler is the only one and always leads. With WAL and `synchronous`
NORMAL a killed process loses nothing that was written, a power failure at most the last writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from serverless_triton.scheduler.state.protocol import (
    ABSENT,
    JSON,
    Change,
    Document,
    StateInUse,
    StateStore,
    StateUnavailable,
    StateUnusable,
    Watchers,
    check_revision,
    encode,
)

T = TypeVar("T")

APPLICATION_ID = 0x53545254  # in the file's header: ours
SCHEMA_VERSION = 1
BUSY_S = 2.0  # how long a predecessor that is just ending may keep the file
EPOCH_KEY = "epoch"

_SCHEMA = f"""
CREATE TABLE documents (key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE last_revision (revision INTEGER NOT NULL);
INSERT INTO last_revision VALUES ({ABSENT});
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


class SqliteStore:
    """Implements `StateStore`. Made by `open`."""

    def __init__(self, thread: ThreadPoolExecutor, connection: sqlite3.Connection) -> None:
        self._thread = thread
        self._connection = connection
        self._watchers = Watchers()

    @classmethod
    async def open(cls, path: Path | None) -> SqliteStore:
        """None: in memory, for nobody after this process. Raises StateUnusable, StateInUse."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(thread, connection)

    async def get(self, key: str) -> Document | None:
        return await self._run(lambda: self._read(key))

    async def put(self, key: str, value: JSON, *, expected: int | None = None) -> int:
        text = encode(key, value)
        revision = await self._run(lambda: self._write(key, text, expected))
        self._watchers.tell(Change(key=key, document=Document(key=key, value=json.loads(text), revision=revision)))
        return revision

    async def delete(self, key: str, *, expected: int | None = None) -> None:
        if await self._run(lambda: self._remove(key, expected)):
            self._watchers.tell(Change(key=key, document=None))

    async def list(self, prefix: str) -> tuple[Document, ...]:
        return await self._run(lambda: self._under(prefix))

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        return self._watchers.follow(prefix, self.list)

    async def close(self) -> None:
        """Idempotent. What was written is in the file."""
        with contextlib.suppress(RuntimeError):  # closed already
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, RuntimeError) as error:  # a full disk, say; or it was closed
            raise StateUnavailable(f"the state's file: {error}") from error

    # In the thread

    def _read(self, key: str) -> Document | None:
        row = self._connection.execute("SELECT key, value, revision FROM documents WHERE key = ?", (key,)).fetchone()
        return None if row is None else _document(row)

    def _under(self, prefix: str) -> tuple[Document, ...]:
        rows = self._connection.execute(
            "SELECT key, value, revision FROM documents WHERE substr(key, 1, ?) = ? ORDER BY key", (len(prefix), prefix)
        )
        return tuple(map(_document, rows))

    def _write(self, key: str, text: str, expected: int | None) -> int:
        with self._transaction(key, expected):
            (revision,) = self._connection.execute(
                "UPDATE last_revision SET revision = revision + 1 RETURNING revision"
            ).fetchone()
            self._connection.execute("REPLACE INTO documents VALUES (?, ?, ?)", (key, text, revision))
        return int(revision)

    def _remove(self, key: str, expected: int | None) -> bool:
        with self._transaction(key, expected):
            return self._connection.execute("DELETE FROM documents WHERE key = ?", (key,)).rowcount > 0

    @contextlib.contextmanager
    def _transaction(self, key: str, expected: int | None) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            known = self._read(key)
            check_revision(key, ABSENT if known is None else known.revision, expected)
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


@dataclass(slots=True)
class SoleLeadership:
    """Of the one scheduler that has the file: it leads from its start to its end, each time with a higher epoch."""

    _store: StateStore
    epoch: int

    @classmethod
    async def begin(cls, store: StateStore) -> SoleLeadership:
        """Raises StateUnavailable, and StateUnusable where the kept epoch is none."""
        known = await store.get(EPOCH_KEY)
        last = 0 if known is None else known.value
        if not isinstance(last, int):
            raise StateUnusable(f"the kept epoch is {last!r}; it must be a whole number: move the state's file away")
        leadership = cls(store, last)
        await leadership.rise_above(last)
        return leadership

    def may_act(self, now_s: float) -> bool:
        return True

    async def rise_above(self, epoch: int) -> int:
        self.epoch = max(self.epoch, epoch + 1)
        await self._store.put(EPOCH_KEY, self.epoch)
        return self.epoch


def _connect(path: Path | None) -> sqlite3.Connection:
    """Raises StateUnusable, StateInUse."""
    if path is None:
        return _prepare(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False), "memory")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
    except OSError as error:
        raise StateUnusable(f"{path}: the state's file cannot be opened: {error.strerror}; name another") from error
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        return _prepare(connection, str(path))
    except sqlite3.OperationalError as error:
        connection.close()
        if "locked" in str(error):
            raise StateInUse(f"{path}: another scheduler has this state; give each its own, or use etcd") from error
        raise StateUnusable(f"{path}: the state's file cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        connection.close()
        raise StateUnusable(
            f"{path}: is damaged or no state of ours ({error}); move it away, and the scheduler learns anew"
        ) from error
    except StateUnusable:
        connection.close()
        raise


def _prepare(connection: sqlite3.Connection, path: str) -> sqlite3.Connection:
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA synchronous = NORMAL")
    _check_owner(connection, path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("COMMIT")  # the lock stays
    damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if damage != "ok":
        raise sqlite3.DatabaseError(damage)
    if not _tables(connection):
        connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
    return connection


def _check_owner(connection: sqlite3.Connection, path: str) -> None:
    """Before anything is written to it. Raises StateUnusable."""
    tables = _tables(connection)
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if tables and owner != APPLICATION_ID:
        raise StateUnusable(f"{path}: is another program's SQLite file; name one of the scheduler's own, or a new one")
    if version > SCHEMA_VERSION:
        raise StateUnusable(
            f"{path}: is of a later version ({version}, known is {SCHEMA_VERSION}); use its scheduler, or another file"
        )


def _tables(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _document(row: tuple[str, str, int]) -> Document:
    key, text, revision = row
    return Document(key=key, value=json.loads(text), revision=revision)
