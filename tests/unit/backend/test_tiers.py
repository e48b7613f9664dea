"""When the store is asked again, and what is known of one that does not answer."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serverless_triton.backend.agent import NodeAgent
from serverless_triton.backend.devices import CPU, Devices
from serverless_triton.backend.tiers import MAX_FAILURES, TierWatcher
from serverless_triton.loader.errors import StoreUnavailable

WAIT_S = 10.0


class HandStore:
    """Answers each question when the test says so; an error is raised."""

    def __init__(self, watcher: TierWatcher) -> None:
        self.loop = asyncio.get_running_loop()
        self.asked: asyncio.Queue[threading.Event] = asyncio.Queue()
        self.status: Any = "first"
        watcher._ask = self.ask  # type: ignore[method-assign]

    def ask(self) -> Any:
        status, answered = self.status, threading.Event()
        self.loop.call_soon_threadsafe(self.asked.put_nowait, answered)
        answered.wait(WAIT_S)
        if isinstance(status, Exception):
            raise status
        return status

    async def question(self) -> threading.Event:
        return await asyncio.wait_for(self.asked.get(), WAIT_S)


async def watched(**options: float) -> tuple[NodeAgent, TierWatcher, HandStore, asyncio.Task[None]]:
    agent = NodeAgent(None, Devices({CPU: 1}))  # type: ignore[arg-type]
    watcher = TierWatcher(agent, Path("store"), **options)
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


async def test_what_others_move_is_seen_after_a_while():
    agent, watcher, store, task = await watched(period_s=0.01)
    (await store.question()).set()
    store.status = "moved by hand"
    for _ in range(2):
        (await store.question()).set()
    while watcher.status != "moved by hand":
        await until_told(agent, agent.version)
    task.cancel()


async def test_a_store_that_does_not_answer_holds_nothing_and_that_is_said_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    _, watcher, store, task = await watched(period_s=0.0, retry_s=0.0)
    (await store.question()).set()
    store.status = StoreUnavailable("it is gone")
    known = []
    for _ in range(2 * MAX_FAILURES):
        (await store.question()).set()
        known.append(watcher.status)
    assert known[0] == "first"
    assert known[-1] is None

    store.status = "back"
    while watcher.status != "back":
        (await store.question()).set()
        await asyncio.sleep(0)
    assert [record.levelname for record in caplog.records if "store_" in record.message] == ["WARNING", "INFO"]
    assert "it is gone" in caplog.text
    task.cancel()


async def test_a_store_that_is_away_has_the_room_that_it_had():
    _, watcher, store, task = await watched(period_s=0.0, retry_s=0.0)
    assert watcher.dram_bytes == 0
    store.status = SimpleNamespace(dram_bytes=7)
    while not watcher.dram_bytes:
        (await store.question()).set()
    store.status = StoreUnavailable("it is gone")
    while watcher.status is not None:
        (await store.question()).set()
    assert watcher.dram_bytes == 7
    task.cancel()


async def test_a_store_that_is_restarted_in_time_keeps_what_is_known_of_it(caplog: pytest.LogCaptureFixture):
    _, watcher, store, task = await watched(period_s=0.0, retry_s=0.0)
    (await store.question()).set()
    store.status = StoreUnavailable("it is being restarted")
    for _ in range(MAX_FAILURES - 1):
        (await store.question()).set()
    store.status = "first"
    for _ in range(2):
        (await store.question()).set()
        assert watcher.status == "first"
    assert not caplog.records
    task.cancel()
