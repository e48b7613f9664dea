"""What this node's store holds, as the agent last saw it.

It is asked after every change of the agent's that could have moved it, and every few seconds, for what others move:
prefetches, pins and evictions by hand.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from serverless_triton.backend.agent import NodeAgent
from serverless_triton.loader.client import Store
from serverless_triton.loader.errors import LoaderError
from serverless_triton.loader.store_status import StoreStatus

logger = logging.getLogger(__name__)

STORE_TIMEOUT_S = 5.0
RETRY_S = 0.5
PERIOD_S = 5.0
# A daemon that dies has a successor sooner than that, with the same images.
MAX_FAILURES = 4


class TierWatcher:
    """Keeps `status` current: None until the store has answered once, and while it does not answer."""

    def __init__(
        self, agent: NodeAgent, store_socket: Path, *, period_s: float = PERIOD_S, retry_s: float = RETRY_S
    ) -> None:
        self._agent = agent
        self._store_socket = store_socket
        self._period_s = period_s
        self._retry_s = retry_s
        self._failures = 0
        self._last: StoreStatus | None = None
        self.status: StoreStatus | None = None

    @property
    def dram_bytes(self) -> int:
        """The store's budget, which its successor has, too; 0 until the store has answered once."""
        return self._last.dram_bytes if self._last else 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            asked = self._agent.version
            try:
                status = await asyncio.get_running_loop().run_in_executor(None, self._ask)
            except (LoaderError, OSError) as error:
                self._on_failure(error)
                await asyncio.sleep(self._retry_s)
                continue
            is_quiet = self._agent.version == asked  # else something moved meanwhile, and the answer may not know it
            self._on_answer(status)
            await self._changed_since(self._agent.version if is_quiet else asked)

    def _on_answer(self, status: StoreStatus) -> None:
        if self._failures >= MAX_FAILURES:
            logger.info("store_back socket=%s", self._store_socket)
        self._failures, self._last = 0, status
        self._set(status)

    def _on_failure(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == MAX_FAILURES:
            logger.warning("store_away socket=%s error=%s", self._store_socket, error)
            self._set(None)

    def _set(self, status: StoreStatus | None) -> None:
        if status != self.status:
            self.status = status
            self._agent.touch()

    async def _changed_since(self, version: int) -> None:
        """Returns after a change, or when it is time to ask all the same."""
        try:
            await asyncio.wait_for(self._agent.changed_since(version), self._period_s)
        except asyncio.TimeoutError:
            return

    def _ask(self) -> StoreStatus:
        with Store(self._store_socket, timeout_s=STORE_TIMEOUT_S) as store:
            return store.status()
