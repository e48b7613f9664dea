"""Who leads, by etcd: one key, held with a lease that its scheduler renews.

The leader counts its lease from before it asked for it, on its own monotonic clock, and stops acting a margin before it
could run out. It was stopped for longer? Then it knows as soon as it goes on, and what it had sent is refused by the
agents, who have heard of a later epoch. The epoch is the revision at which the key was made, above a floor: agents may
know epochs of another etcd, or of SQLite.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from aetcd import rpc

from serverless_triton.scheduler.state.etcd import end_of
from serverless_triton.scheduler.state.etcd_link import EtcdLink, EtcdRefused
from serverless_triton.scheduler.state.protocol import NotLeading, StateUnavailable

logger = logging.getLogger(__name__)

LEADER_KEY = "leader"
FLOOR_KEY = "epoch_floor"
SCHEDULERS = "schedulers/"  # each that there is, by its name
MARGIN = 0.25  # of the lease: clocks may differ, and a partitioned member may renew once more than it should
RENEWALS = 6  # in the time of a lease
RETRY_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """Whom the election's key names; `revision` tells one leadership from the next."""

    address: str
    revision: int


@dataclass(slots=True, kw_only=True)
class EtcdLeadership:
    """Implements `Leadership`: one, from its election to its end."""

    link: EtcdLink
    key: str
    floor_key: str
    revision: int  # of the key, when it was made
    epoch: int
    acts_until_s: float

    def may_act(self, now_s: float) -> bool:
        return now_s < self.acts_until_s

    async def rise_above(self, epoch: int) -> int:
        if epoch < self.epoch:
            return self.epoch
        if not self.may_act(time.monotonic()):
            raise NotLeading("the lease may have run out")
        request = rpc.TxnRequest(
            compare=[_made_at(self.key, self.revision)], success=[_put(self.floor_key, str(epoch + 1 - self.revision))]
        )
        if not (await self.link.write(request)).succeeded:
            raise NotLeading("another scheduler leads")
        self.epoch = epoch + 1
        return self.epoch


@dataclass(slots=True, kw_only=True)
class EtcdElection:
    """`run` until cancelled; `leader` and `leadership` say how it stands, and `changed` is awaited for news."""

    link: EtcdLink
    prefix: str
    address: str
    lease_s: int
    clock: Callable[[], float] = time.monotonic
    leader: Leader | None = None
    leadership: EtcdLeadership | None = None  # ours, until another could lead for certain
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def names(self) -> frozenset[str]:
        """Schedulers that there are, or were until a lease's time ago. Raises StateUnavailable."""
        begin = f"{self.prefix}{SCHEDULERS}".encode()
        found = await self.link.read(rpc.RangeRequest(key=begin, range_end=end_of(begin), keys_only=True))
        return frozenset(kv.key.removeprefix(begin).decode() for kv in found.kvs)

    async def changed(self) -> None:
        """Returns at the next change of `leader` or `leadership`."""
        await self._changed.wait()

    async def run(self) -> None:
        while True:
            try:
                await self._session()
            except StateUnavailable as error:
                logger.warning("election_waits error=%s", error)
            await asyncio.sleep(RETRY_S)

    async def _session(self) -> None:
        """One lease: until it is gone. Raises StateUnavailable where none was had."""
        asked_s = self.clock()
        granted = await self.link.lease("LeaseGrant", rpc.LeaseGrantRequest(TTL=self.lease_s))
        lease = _Lease(id=granted.ID, acts_until_s=asked_s + _safe(granted.TTL))
        tasks = [asyncio.ensure_future(work) for work in (self._renew(lease), self._campaign(lease))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(StateUnavailable):
                await self.link.lease("LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease.id))

    def _leave(self) -> None:
        if self.leadership is not None:
            self.leadership.acts_until_s = -math.inf
        self.leadership = None
        self._set(leader=None)

    async def _renew(self, lease: _Lease) -> None:
        """Until the lease is gone."""
        pause_s = self.lease_s / RENEWALS
        while True:
            await asyncio.sleep(pause_s)
            asked_s = self.clock()
            try:
                lives_s = await self.link.keep_alive(lease.id, pause_s * 2)
            except StateUnavailable as error:
                logger.debug("lease_not_renewed error=%s", error)
                continue
            if lives_s == 0:
                logger.warning("lease_gone")
                return
            lease.acts_until_s = asked_s + _safe(lives_s)
            if self.leadership is not None:
                self.leadership.acts_until_s = lease.acts_until_s

    async def _campaign(self, lease: _Lease) -> None:
        """Until what we held is another's, or nobody's."""
        while True:
            try:
                await self._announce(lease)
                async with contextlib.aclosing(self._holders()) as holders:
                    async for holder in holders:
                        if self.leadership is not None and not _is(holder, self.leadership.revision):
                            logger.warning("leadership_gone epoch=%d", self.leadership.epoch)
                            return
                        await self._take_note(holder, lease)
            except EtcdRefused as error:  # the lease is gone, which its renewal finds out, too
                logger.info("campaign_refused error=%s", error)
            except StateUnavailable as error:
                logger.debug("campaign_waits error=%s", error)
            await asyncio.sleep(RETRY_S)

    async def _announce(self, lease: _Lease) -> None:
        """That there is this scheduler, whoever leads."""
        await self.link.write(
            rpc.TxnRequest(success=[_put(f"{self.prefix}{SCHEDULERS}{self.name}", self.address, lease.id)])
        )

    async def _take_note(self, holder: Any, lease: _Lease) -> None:
        """Of who holds the key. Held with our lease it is ours, also where nobody told us that we got it."""
        if holder is None:
            self._set(leader=None)
            await self._stand(lease)
            return
        if holder.lease == lease.id and self.leadership is None:
            epoch = await self._floor() + holder.create_revision
            self.leadership = EtcdLeadership(
                link=self.link,
                key=self._key,
                floor_key=self._floor_key,
                revision=holder.create_revision,
                epoch=epoch,
                acts_until_s=lease.acts_until_s,
            )
            logger.info("leads epoch=%d address=%s", epoch, self.address)
        self._set(leader=Leader(address=holder.value.decode(), revision=holder.create_revision))

    async def _stand(self, lease: _Lease) -> None:
        """The key is free: whoever is first gets it, and the watch says who."""
        await self.link.write(
            rpc.TxnRequest(compare=[_made_at(self._key, 0)], success=[_put(self._key, self.address, lease.id)])
        )

    async def _floor(self) -> int:
        found = await self.link.read(rpc.RangeRequest(key=self._floor_key.encode()))
        return int(found.kvs[0].value) if found.kvs else 0

    async def _holders(self) -> AsyncGenerator[Any, None]:
        """The key as it is, then as it changes; None where nobody holds it. Raises StateUnavailable."""
        key = self._key.encode()
        found = await self.link.read(rpc.RangeRequest(key=key))
        yield found.kvs[0] if found.kvs else None
        wanted = rpc.WatchCreateRequest(key=key, start_revision=found.header.revision + 1)
        async with contextlib.aclosing(self.link.events(wanted)) as events:
            async for event in events:
                yield event.kv if event.type == event.PUT else None

    def _set(self, *, leader: Leader | None) -> None:
        self.leader = leader
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def _key(self) -> str:
        return f"{self.prefix}{LEADER_KEY}"

    @property
    def _floor_key(self) -> str:
        return f"{self.prefix}{FLOOR_KEY}"


@dataclass(slots=True, kw_only=True)
class _Lease:
    id: int
    acts_until_s: float


def _safe(lives_s: int) -> float:
    """For how long a lease can be relied on from before it was asked for, of one that lives so long in etcd."""
    return lives_s * (1 - MARGIN)


def _is(holder: Any, revision: int) -> bool:
    return holder is not None and int(holder.create_revision) == revision


def _made_at(key: str, revision: int) -> rpc.Compare:
    """Revision 0: there is none."""
    return rpc.Compare(key=key.encode(), target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, create_revision=revision)


def _put(key: str, value: str, lease: int = 0) -> rpc.RequestOp:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key.encode(), value=value.encode(), lease=lease))
