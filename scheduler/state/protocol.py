"""What the scheduler keeps beyond its process: small JSON documents by key, and who leads.

StateError
├── StateConflict     the document is not at the revision that it was expected at
├── StateUnavailable  the store does not answer; nothing is known of what was asked
├── StateUnusable     the file is none of ours, of a later version, damaged, or not to be opened
├── StateInUse        another scheduler has the file
├── DocumentTooLarge  a document is larger than a store takes
└── NotLeading        another scheduler leads, or this one's lease may have run out

Truth about servers and replicas is not kept: agents and Tritons say it anew.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from serverless_triton.scheduler.errors import SchedulerError

JSON = Any  # what `json.dumps` takes and `json.loads` gives

ABSENT = 0  # as an expected revision: there must be no such document yet
MAX_DOCUMENT_BYTES = 1 << 20  # etcd takes requests of 1.5 MiB


class StateError(SchedulerError):
    code = "UNAVAILABLE"


class StateConflict(StateError):
    code = "ABORTED"


class StateUnavailable(StateError):
    pass


class StateUnusable(StateError):
    code = "FAILED_PRECONDITION"


class StateInUse(StateError):
    code = "FAILED_PRECONDITION"


class DocumentTooLarge(StateError):
    code = "INVALID_ARGUMENT"


class NotLeading(StateError):
    code = "FAILED_PRECONDITION"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A value as it was written at a revision; revisions grow with every write to the store."""

    key: str
    value: JSON
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`document` is None where the key is gone."""

    key: str
    document: Document | None


class StateStore(Protocol):
    """Every method may raise StateUnavailable, and none blocks the event loop."""

    async def get(self, key: str) -> Document | None: ...

    async def put(self, key: str, value: JSON, *, expected: int | None = None) -> int:
        """Its new revision. Raises StateConflict where the document is not at the `expected` revision, and
        DocumentTooLarge.
        """

    async def delete(self, key: str, *, expected: int | None = None) -> None:
        """A key that is not there is fine, unless a revision is expected. Raises StateConflict."""

    async def list(self, prefix: str) -> tuple[Document, ...]:
        """By key."""

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """What is there, then what changes, until the caller leaves. Of changes that come faster than they are taken
        the last one of a key counts. It outlives an outage of the store and never raises StateUnavailable.
        """

    async def close(self) -> None: ...


class Leadership(Protocol):
    """One scheduler's right to act. The epoch grows with every leadership of anybody."""

    @property
    def epoch(self) -> int:
        """Of this leadership, or of the last one that this scheduler had; 0 before."""

    def may_act(self, now_s: float) -> bool:
        """Whether the lease still holds for certain at this time of the monotonic clock."""

    async def rise_above(self, epoch: int) -> int:
        """An agent has seen this epoch: from now on ours is above. Raises NotLeading, StateUnavailable."""


def encode(key: str, value: JSON) -> str:
    """One text for equal values. Raises DocumentTooLarge."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)
    if len(text.encode()) > MAX_DOCUMENT_BYTES:
        raise DocumentTooLarge(f"the document {key!r} has {len(text)} characters; up to {MAX_DOCUMENT_BYTES} are kept")
    return text


@dataclass(slots=True)
class Watchers:
    """Those who watch a store of this process: each gets every change under its prefix."""

    _queues: dict[asyncio.Queue[Change], str] = field(default_factory=dict)

    def tell(self, change: Change) -> None:
        for queue, prefix in self._queues.items():
            if change.key.startswith(prefix):
                queue.put_nowait(change)

    async def follow(self, prefix: str, listed: Callable[[str], Any]) -> AsyncIterator[Change]:
        """`listed` is the store's `list`."""
        queue: asyncio.Queue[Change] = asyncio.Queue()
        self._queues[queue] = prefix
        try:
            for document in await listed(prefix):
                yield Change(key=document.key, document=document)
            while True:
                yield await queue.get()
        finally:
            del self._queues[queue]


@dataclass(slots=True)
class FakeStateStore:
    """A store in memory for tests. `away`: it does not answer."""

    documents: dict[str, Document] = field(default_factory=dict)
    away: bool = False
    writes: int = 0
    _watchers: Watchers = field(default_factory=Watchers)

    async def get(self, key: str) -> Document | None:
        self._check()
        return self.documents.get(key)

    async def put(self, key: str, value: JSON, *, expected: int | None = None) -> int:
        text = encode(key, value)
        self._check(key, expected)
        self.writes += 1
        document = Document(key=key, value=json.loads(text), revision=self.writes)
        self.documents[key] = document
        self._watchers.tell(Change(key=key, document=document))
        return document.revision

    async def delete(self, key: str, *, expected: int | None = None) -> None:
        self._check(key, expected)
        if self.documents.pop(key, None) is not None:
            self._watchers.tell(Change(key=key, document=None))

    async def list(self, prefix: str) -> tuple[Document, ...]:
        self._check()
        return tuple(self.documents[key] for key in sorted(self.documents) if key.startswith(prefix))

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        return self._watchers.follow(prefix, self.list)

    async def close(self) -> None:
        pass

    def _check(self, key: str = "", expected: int | None = None) -> None:
        if self.away:
            raise StateUnavailable("the store does not answer")
        check_revision(key, revision_of(self.documents, key), expected)


def revision_of(documents: Mapping[str, Document], key: str) -> int:
    return documents[key].revision if key in documents else ABSENT


def check_revision(key: str, revision: int, expected: int | None) -> None:
    """Raises StateConflict."""
    if expected is not None and revision != expected:
        raise StateConflict(f"the document {key!r} is at revision {revision}, not at {expected}: read it again")


@dataclass(slots=True)
class FakeLeadership:
    """Leads as long as `acting` says so."""

    epoch: int = 1
    acting: bool = True

    def may_act(self, now_s: float) -> bool:
        return self.acting

    async def rise_above(self, epoch: int) -> int:
        if not self.acting:
            raise NotLeading("another scheduler leads")
        self.epoch = max(self.epoch, epoch + 1)
        return self.epoch
