"""Runs what a load asks of the network until it is done or the load is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from .. import _core

Result = TypeVar("Result")

TICK_S = 0.05


def run_until_cancelled(work: Coroutine[Any, Any, Result], job: _core.ReadJob) -> Result:
    """The result of `work`, on an event loop of its own. Once this returns, the threads that it used have ended, too.

    Raises what the work raises, StoreCancelled after job.cancel().
    """
    return asyncio.run(_watched(work, job))


async def _watched(work: Coroutine[Any, Any, Result], job: _core.ReadJob) -> Result:
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait([task], timeout=TICK_S)
        if job.is_cancelled:
            task.cancel()
    job.stop_if_cancelled()
    return await task
