"""State in an etcd cluster that several schedulers share: documents with compare-and-swap, and watches of them.

A revision is etcd's own, of the key's last change, so it grows with every write of anybody. Who leads is
`etcd_election.py`'s.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from aetcd import rpc

from serverless_triton.scheduler.state.etcd_link import EtcdLink
from serverless_triton.scheduler.state.protocol import (
    JSON,
    Change,
    Document,
    StateConflict,
    StateUnavailable,
    encode,
)

logger = logging.getLogger(__name__)

DOCUMENTS = "documents/"  # below the configured prefix
LOOK_AGAIN_S = 0.2


class EtcdStore:
    """Implements `StateStore`. The link is its owner's to close."""

    def __init__(self, link: EtcdLink, prefix: str) -> None:
        self._link = link
        self._prefix = f"{prefix}{DOCUMENTS}"

    async def get(self, key: str) -> Document | None:
        found = await self._link.read(rpc.RangeRequest(key=self._key(key)))
        return self._document(found.kvs[0]) if found.kvs else None

    async def put(self, key: str, value: JSON, *, expected: int | None = None) -> int:
        put = rpc.PutRequest(key=self._key(key), value=encode(key, value).encode())
        return await self._change(key, rpc.RequestOp(request_put=put), expected)

    async def delete(self, key: str, *, expected: int | None = None) -> None:
        gone = rpc.DeleteRangeRequest(key=self._key(key))
        await self._change(key, rpc.RequestOp(request_delete_range=gone), expected)

    async def list(self, prefix: str) -> tuple[Document, ...]:
        documents, _ = await self._listed(prefix)
        return documents

    async def watch(self, prefix: str) -> AsyncGenerator[Change, None]:
        known: dict[str, int] = {}
        while True:
            try:
                documents, revision = await self._listed(prefix)
                for change in _differences(known, documents):
                    yield change
                begin = self._key(prefix)
                wanted = rpc.WatchCreateRequest(key=begin, range_end=end_of(begin), start_revision=revision + 1)
                async with aclosing(self._link.events(wanted)) as events:
                    async for event in events:
                        change = self._told(event)
                        _note(known, change)
                        yield change
            except StateUnavailable as error:
                logger.debug("watch_broke prefix=%s error=%s", prefix, error)
            await asyncio.sleep(LOOK_AGAIN_S)

    async def close(self) -> None:
        await self._link.close()

    async def _change(self, key: str, change: rpc.RequestOp, expected: int | None) -> int:
        request = rpc.TxnRequest(success=[change])
        if expected is not None:
            request.compare.append(
                rpc.Compare(
                    key=self._key(key),
                    target=rpc.Compare.MOD,
                    result=rpc.Compare.EQUAL,
                    mod_revision=expected,
                )
            )
        done = await self._link.write(request)
        if not done.succeeded:
            raise StateConflict(f"the document {key!r} is not at revision {expected}: read it again")
        return int(done.header.revision)

    async def _listed(self, prefix: str) -> tuple[tuple[Document, ...], int]:
        """By key, and the revision at which it was so."""
        begin = self._key(prefix)
        found = await self._link.read(rpc.RangeRequest(key=begin, range_end=end_of(begin)))
        return tuple(self._document(one) for one in sorted(found.kvs, key=lambda kv: kv.key)), found.header.revision

    def _told(self, event: Any) -> Change:
        key = event.kv.key.decode().removeprefix(self._prefix)
        return Change(key=key, document=self._document(event.kv) if event.type == event.PUT else None)

    def _key(self, key: str) -> bytes:
        return f"{self._prefix}{key}".encode()

    def _document(self, kv: Any) -> Document:
        key = kv.key.decode().removeprefix(self._prefix)
        return Document(key=key, value=json.loads(kv.value), revision=int(kv.mod_revision))


def end_of(prefix: bytes) -> bytes:
    """The first key after all that begin so; ours never end with 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _differences(known: dict[str, int], documents: tuple[Document, ...]) -> list[Change]:
    """What changed while nobody watched; `known` is then what there is."""
    gone = known.keys() - {document.key for document in documents}
    changes = [Change(key=key, document=None) for key in sorted(gone)]
    changes += [Change(key=one.key, document=one) for one in documents if known.get(one.key) != one.revision]
    for change in changes:
        _note(known, change)
    return changes


def _note(known: dict[str, int], change: Change) -> None:
    if change.document is None:
        known.pop(change.key, None)
    else:
        known[change.key] = change.document.revision
