"""Looks at the model repository once a second, and tells the catalogue which models to read again.

A directory counts as it was found twice: what is still being written waits for a second in which nobody writes. What
cannot be read is not gone, nor is everything because the repository is another directory that is empty: that of a file
system which is not mounted. The disk is read in a thread; what is found is taken over on the caller's asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serverless_triton.scheduler.catalogue import Catalogue, is_name
from serverless_triton.scheduler.definitions import NOT_THERE, Place, Stamp, place_of, take_stamp
from serverless_triton.scheduler.errors import RepositoryAway

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0

Stamps = Mapping[str, Stamp | None]  # None: there is something that cannot be read


def scan(root: Path) -> tuple[Place, Stamps]:
    """The directories that could be models, by name. Raises OSError where the repository itself cannot be read."""
    found: dict[str, Stamp | None] = {}
    place = place_of(root)
    for path in root.iterdir():
        if is_name(path.name):
            with contextlib.suppress(*NOT_THERE):  # no directory, or none with a configuration: no model
                found[path.name] = _stamp(path)
    return place, found


def _stamp(directory: Path) -> Stamp | None:
    """Raises one of NOT_THERE."""
    try:
        return take_stamp(directory)
    except NOT_THERE:
        raise
    except OSError:
        return None


@dataclass(slots=True)
class RepositoryWatch:
    """Runs until cancelled. `after_each` is called after each look at a repository that could be read."""

    catalogue: Catalogue
    after_each: Callable[[], None] = lambda: None
    interval_s: float = INTERVAL_S
    _before: Stamps | None = None
    _settled: dict[str, Stamp] = field(default_factory=dict)
    _place: Place | None = None  # where models were found last
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
            place, now = await asyncio.to_thread(scan, self.catalogue.root)
        except OSError as error:
            self._is_away(str(error))
            return
        if self._before and not now and place != self._place:
            self._is_away("it is another directory than it was, and empty: is its file system mounted?")
            return
        self._unreadable = False
        self._place = place if now else self._place
        self._take_over(now)
        self.after_each()

    def _is_away(self, why: str) -> None:
        """Nothing is gone because of it."""
        if not self._unreadable:
            logger.error("repository_unreadable path=%s error=%s", self.catalogue.root, why)
        self._unreadable = True

    def _take_over(self, now: Stamps) -> None:
        before, self._before = self._before, now
        if before is None:
            self._settled = {name: stamp for name, stamp in now.items() if stamp is not None}  # nothing of it is news
            return
        for name in sorted(name for name, stamp in now.items() if stamp is None and before.get(name) is not None):
            logger.error("model_unreadable model=%s", name)
        known = self.catalogue.known_stamps()
        for name in sorted({*known, *self._settled} - {*now, *before}):
            self._settled.pop(name, None)
            self._refresh(name)
        for name, stamp in sorted(now.items()):
            if stamp is None or before.get(name) != stamp:
                continue
            is_new = name not in self._settled
            self._settled[name] = stamp
            if is_new or known.get(name, stamp) != stamp:
                self._refresh(name, stamp)

    def _refresh(self, name: str, settled: Stamp | None = None) -> None:
        try:
            self.catalogue.refresh(name, settled)
        except RepositoryAway as error:  # since it was looked at a moment ago
            self._is_away(str(error))
