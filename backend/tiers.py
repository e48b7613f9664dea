"""What this node's store holds, as the agent last saw it; asked again after every change that could have moved it."""

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


class TierWatcher:
    """Keeps `status` current. None until the store has answered once."""

    def __init__(self, agent: NodeAgent, store_socket: Path) -> None:
        self._agent = agent
        self._store_socket = store_socket
        self.status: StoreStatus | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            asked = self._agent.version
            status = await asyncio.get_running_loop().run_in_executor(None, self._ask)
            if status is None:
                await asyncio.sleep(RETRY_S)
                continue
            is_quiet = self._agent.version == asked  # else something moved meanwhile, and the answer may not know it
            if status != self.status:
                self.status = status
                self._agent.touch()
            await self._agent.changed_since(self._agent.version if is_quiet else asked)

    def _ask(self) -> StoreStatus | None:
        try:
            with Store(self._store_socket, timeout_s=STORE_TIMEOUT_S) as store:
                return store.status()
        except (LoaderError, OSError) as error:
            logger.debug("store_away error=%s", error)
            return None
