"""What the scheduler has learned and was told, kept over its restarts.

Whoever owns such a thing registers it: a name, how it becomes JSON, how it comes back. What has changed is saved at
most once an interval, by the leader alone; a document that nobody else understands is left out, with a warning.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from serverless_triton.scheduler.state.protocol import (
    ABSENT,
    JSON,
    DocumentTooLarge,
    StateConflict,
    StateError,
    StateStore,
    encode,
)

logger = logging.getLogger(__name__)

PREFIX = "kept/"
SAVE_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One thing that is kept. `from_json` raises ValueError or TypeError for what it does not understand, and then
    changes nothing.
    """

    name: str
    to_json: Callable[[], JSON]
    from_json: Callable[[JSON], None]

    @property
    def key(self) -> str:
        return f"{PREFIX}{self.name}"


@dataclass(slots=True)
class Persistence:
    """Of one leadership: `load` once, then `run` until cancelled, then `save` once more."""

    store: StateStore
    things: Iterable[Kept]
    may_save: Callable[[], bool] = lambda: True
    _saved: dict[str, str] = field(default_factory=dict)  # by name: the text that the store has
    _revisions: dict[str, int] = field(default_factory=dict)
    _too_large: set[str] = field(default_factory=set)
    _is_away: bool = False

    async def load(self) -> None:
        """Raises StateUnavailable."""
        for thing in self.things:
            document = await self.store.get(thing.key)
            self._revisions[thing.name] = ABSENT if document is None else document.revision
            if document is None:
                continue
            try:
                thing.from_json(document.value)
            except (ValueError, TypeError) as error:
                logger.warning("kept_not_understood name=%s error=%r", thing.name, str(error))
            else:
                self._saved[thing.name] = encode(thing.key, document.value)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(SAVE_INTERVAL_S)
            await self.save()

    async def save(self) -> None:
        """What has changed since it was saved. A store that is away gets it at the next turn."""
        if not self.may_save():
            return
        try:
            for thing in self.things:
                await self._save(thing)
        except StateError as error:
            if not self._is_away:
                logger.warning("state_not_saved error=%s", error)
            self._is_away = True
        else:
            self._is_away = False

    async def _save(self, thing: Kept) -> None:
        value = thing.to_json()
        try:
            text = encode(thing.key, value)
        except DocumentTooLarge as error:
            if thing.name not in self._too_large:  # once: it does not become smaller by being said
                logger.error("too_large_to_be_kept name=%s error=%s", thing.name, error)
            self._too_large.add(thing.name)
            return
        if text == self._saved.get(thing.name):
            return
        try:
            revision = await self.store.put(thing.key, value, expected=self._revisions.get(thing.name, ABSENT))
        except StateConflict:  # an earlier leader's last word, which ours comes after
            known = await self.store.get(thing.key)
            self._revisions[thing.name] = ABSENT if known is None else known.revision
        else:
            self._saved[thing.name], self._revisions[thing.name] = text, revision
