"""Looks at the model repository once a second, and tells the catalogue which models to read again.

A directory counts as it was found twice: what is still being written waits for a second in which nobody writes. The
disk is read in a thread; what is found is taken over on the caller's asyncio loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serverless_triton.scheduler.catalogue import Catalogue, is_name
from serverless_triton.scheduler.definitions import Stamp, take_stamp

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0

Stamps = Mapping[str, Stamp]


def scan(root: Path) -> Stamps:
    """The directories that could be models, by name. Raises OSError where the repository itself cannot be read."""
    found: dict[str, Stamp] = {}
    for path in root.iterdir():
        if is_name(path.name):
            try:
                found[path.name] = take_stamp(path)
            except OSError:  # no directory, or none with a configuration: no model
                continue
    return found


@dataclass(slots=True)
class RepositoryWatch:
    """Runs until cancelled. `after_each` is called after each look at a repository that could be read."""

    catalogue: Catalogue
    after_each: Callable[[], None] = lambda: None
    interval_s: float = INTERVAL_S
    _before: Stamps | None = None
    _settled: dict[str, Stamp] = field(default_factory=dict)
    _unreadable: bool = False

    async def run(self) -> None:
        self.catalogue.is_watched = True
        try:
            while True:
                await self.look()
                await asyncio.sleep(self.interval_s)
        finally:
            self.catalogue.is_watched = False

    async def look(self) -> None:
        try:
            now = await asyncio.to_thread(scan, self.catalogue.root)
        except OSError as error:  # nothing is gone because a file system is away
            if not self._unreadable:
                logger.error("repository_unreadable path=%s error=%s", self.catalogue.root, error)
            self._unreadable = True
            return
        self._unreadable = False
        self._take_over(now)
        self.after_each()

    def _take_over(self, now: Stamps) -> None:
        before, self._before = self._before, now
        if before is None:
            self._settled = dict(now)  # as the scheduler found it: nothing of it is news
            return
        known = self.catalogue.known_stamps()
        for name in sorted({*known, *self._settled} - {*now, *before}):
            self._settled.pop(name, None)
            self.catalogue.refresh(name)
        for name in sorted(name for name, stamp in now.items() if before.get(name) == stamp):
            stamp, is_new = now[name], name not in self._settled
            self._settled[name] = stamp
            if is_new or known.get(name, stamp) != stamp:
                self.catalogue.refresh(name, stamp)
