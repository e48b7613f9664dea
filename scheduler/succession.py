"""Who leads among schedulers that share an etcd: a reign begins and ends here, and all else follows the leader."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from serverless_triton.scheduler.desk import COMING_S, Desk
from serverless_triton.scheduler.leader_client import LeaderClient
from serverless_triton.scheduler.leader_service import LeaderService
from serverless_triton.scheduler.reign import Reign, Surroundings
from serverless_triton.scheduler.repository_watch import RepositoryWatch
from serverless_triton.scheduler.shared_admission import SharedAdmission
from serverless_triton.scheduler.state.etcd_election import EtcdElection, EtcdLeadership, Leader
from serverless_triton.scheduler.state.protocol import StateUnavailable

logger = logging.getLogger(__name__)

RETRY_S = 0.2


@dataclass(slots=True, kw_only=True)
class Succession:
    """`run` until cancelled, then `end`."""

    around: Surroundings
    election: EtcdElection
    admission: SharedAdmission
    service: LeaderService
    _reign: Reign | None = None
    _leadership: EtcdLeadership | None = None  # the reign's
    _client: LeaderClient | None = None
    _followed: Leader | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)  # of one who follows

    async def run(self) -> None:
        """Raises RuntimeError where a part of a reign has ended, which none should."""
        while True:
            news = asyncio.ensure_future(self.election.changed())
            try:
                await self._see()
            except StateUnavailable as error:
                logger.warning("reign_waits error=%s", error)
                await asyncio.sleep(RETRY_S)
                news.cancel()
                continue
            await self._until(news)

    async def _until(self, news: asyncio.Future[None]) -> None:
        waited = [news] if self._reign is None else [news, asyncio.ensure_future(self._reign.broken())]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not news.done():
                raise RuntimeError("a part of the scheduler has ended")
        finally:
            for one in waited:
                one.cancel()

    async def _see(self) -> None:
        """Do what the election's state asks for. Raises StateUnavailable."""
        leadership, leader = self.election.leadership, self.election.leader
        if self._leadership is not leadership or (leadership is None and self._followed != leader):
            await self.end()
        if leadership is not None and self._reign is None:
            await self._begin(leadership)
        elif leadership is None and self._client is None and not self._tasks:
            self._follow(leader)

    async def _begin(self, leadership: EtcdLeadership) -> None:
        reign = Reign.of(self.around, leadership, may_decide=lambda: desk.is_complete)
        expected = set(await self.election.names()) - {self.election.name}
        desk = Desk(reign.loop, expected, time.monotonic() + COMING_S)
        reign.loop.news.on_adopted = desk.adopted
        try:
            await reign.begin(self.around.catalogue)
        except StateUnavailable:
            await reign.effects.close()
            raise
        self._reign, self._leadership, self.service.desk = reign, leadership, desk
        self.admission.lead(desk)
        asyncio.get_running_loop().call_later(COMING_S, reign.loop.dispatch)

    def _follow(self, leader: Leader | None) -> None:
        self.around.catalogue.on_change = lambda change: None
        self._tasks = [asyncio.ensure_future(RepositoryWatch(self.around.catalogue).run())]
        self._followed = leader
        if leader is None or leader.address == self.election.address:  # ours, of a lease that we had before
            return
        logger.info("follows leader=%s", leader.address)
        self._client = LeaderClient(
            self.election.name,
            leader.address,
            self.around.links,
            held=self.admission.held,
            on_lost=self.admission.lost,
        )
        self._tasks.append(asyncio.ensure_future(self._client.run()))
        self.admission.follow(self._client)

    async def end(self) -> None:
        """Of whatever there is: a reign, or following one."""
        self.admission.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks, self._followed = [], None
        if self._client is not None:
            await self._client.close()
            self._client = None
        if self._reign is not None:
            desk, self.service.desk = self.service.desk, None
            if desk is not None:
                desk.close()
            await self._reign.end()
            self._reign = self._leadership = None
