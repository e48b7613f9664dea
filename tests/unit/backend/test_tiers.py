"""When the store is asked again."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from serverless_triton.backend.agent import NodeAgent
from serverless_triton.backend.devices import CPU, Devices
from serverless_triton.backend.tiers import TierWatcher

WAIT_S = 10.0


class HandStore:
    """Answers each question when the test says so."""

    def __init__(self, watcher: TierWatcher) -> None:
        self.loop = asyncio.get_running_loop()
        self.asked: asyncio.Queue[threading.Event] = asyncio.Queue()
        self.status: Any = "first"
        watcher._ask = self.ask  # type: ignore[method-assign]

    def ask(self) -> Any:
        status, answered = self.status, threading.Event()
        self.loop.call_soon_threadsafe(self.asked.put_nowait, answered)
        answered.wait(WAIT_S)
        return status

    async def question(self) -> threading.Event:
        return await asyncio.wait_for(self.asked.get(), WAIT_S)


async def watched() -> tuple[NodeAgent, TierWatcher, HandStore, asyncio.Task[None]]:
    agent = NodeAgent(None, Devices({CPU: 1}))  # type: ignore[arg-type]
    watcher = TierWatcher(agent, Path("store"))
    store = HandStore(watcher)
    return agent, watcher, store, asyncio.ensure_future(watcher.run())


async def until_told(agent: NodeAgent, version: int) -> None:
    await asyncio.wait_for(agent.changed_since(version), WAIT_S)


async def test_a_change_while_the_store_answers_has_it_asked_again():
    agent, watcher, store, task = await watched()
    question = await store.question()
    agent.touch()
    store.status = "second"
    question.set()
    (await store.question()).set()
    while watcher.status != "second":
        await until_told(agent, agent.version)
    task.cancel()


async def test_its_own_news_does_not_have_it_asked_again():
    agent, _, store, task = await watched()
    version = agent.version
    (await store.question()).set()
    await until_told(agent, version)
    for _ in range(5):
        await asyncio.sleep(0)
    assert store.asked.empty()
    agent.touch()
    (await store.question()).set()
    task.cancel()
