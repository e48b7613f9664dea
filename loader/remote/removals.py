"""What goes from the SSD cache: out of the way by a rename, then deleted. What resists is remembered until it is gone.

Any thread may call any method.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from itertools import count
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger("serverless_triton.store")

BLOCK_BYTES = 512  # what st_blocks counts


class _Leftover(NamedTuple):
    bytes: int
    problem: str


class Removals:
    """Deletes by way of `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = count(1)
        self._leftovers: dict[Path, _Leftover] = {}
        self._lock = threading.Lock()
        self._clearing = threading.Lock()

    @property
    def left_bytes(self) -> int:
        """What still takes room on the disk though it should be gone."""
        return sum(leftover.bytes for leftover in self._left().values())

    @property
    def problem(self) -> str:
        """Why something could not be removed, "" where nothing is left."""
        left = self._left()
        if not left:
            return ""
        path, leftover = next(iter(left.items()))
        return f"{len(left)} of what should be gone could not be removed: {path}: {leftover.problem}; remove it by hand"

    def take(self, path: Path) -> bool:
        """Moves it out of the way; clear() deletes it. False where it is still there."""
        target = self._directory / f"{path.name}.{os.getpid()}.{next(self._numbers)}"
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            path.rename(target)
        except OSError as error:
            if os.path.lexists(path):
                self._keep(path, error)
                return False
            # Somebody cleared the directory by hand.
        self.forget(path)
        return True

    def retry(self) -> None:
        """Moves out of the way what could not be moved before."""
        for path in self._left():
            if path.parent != self._directory:
                self.take(path)

    def forget(self, path: Path) -> None:
        """It is gone, or may stay now."""
        with self._lock:
            self._leftovers.pop(path, None)

    def clear(self) -> None:
        """Deletes what was taken. Slow."""
        with self._clearing:
            for path in self._taken():
                self._delete(path)

    def _taken(self) -> list[Path]:
        try:
            return sorted(self._directory.iterdir())
        except OSError:
            return []

    def _delete(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)  # as much as can be
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            self.forget(path)
        except OSError as error:
            self._keep(path, error)

    def _keep(self, path: Path, error: OSError) -> None:
        leftover = _Leftover(_bytes_on_disk(path), error.strerror or str(error))
        with self._lock:
            is_known = path in self._leftovers
            self._leftovers[path] = leftover
        if not is_known:
            log.warning("ssd cache: cannot remove path=%s bytes=%d error=%s", path, leftover.bytes, error)

    def _left(self) -> dict[Path, _Leftover]:
        with self._lock:
            return {path: leftover for path, leftover in self._leftovers.items() if os.path.lexists(path)}


def _bytes_on_disk(path: Path) -> int:
    return sum(_allocated_bytes(Path(directory, name)) for directory, _, names in os.walk(path) for name in names)


def _allocated_bytes(file: Path) -> int:
    try:
        return file.lstat().st_blocks * BLOCK_BYTES
    except OSError:
        return 0
