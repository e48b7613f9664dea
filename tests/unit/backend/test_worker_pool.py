"""The pool of idle workers: the zygote is the far end of a unix socket, workers end when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serverless_triton.backend import worker_pool
from serverless_triton.backend.async_channel import AsyncChannel
from serverless_triton.backend.channel import ChannelClosed
from serverless_triton.backend.messages import Fork, Learn, Message, Retire
from serverless_triton.backend.worker_pool import FORK_TIMEOUT_S, LEARNED_AHEAD, MAX_LEARNED, WorkerLink, WorkerPool

WAIT_S = 10.0


class HandChannel:
    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.is_closed = False

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def close(self) -> None:
        self.is_closed = True


class HandLink:
    """An idle worker."""

    def __init__(self) -> None:
        self.channel = HandChannel()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Bench:
    """The pool under test, the clock, and the zygote's end."""

    def __init__(self, folder: Path, spare: int) -> None:
        self.now_s = 0.0
        self.pool = WorkerPool(folder / "zygote", spare, lambda: self.now_s)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.setblocking(False)
        self.listener.bind(str(folder / "zygote"))
        self.listener.listen()

    async def start(self) -> None:
        self.running = asyncio.ensure_future(self.pool.run())
        await self.accept()

    async def accept(self) -> None:
        connection, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(self.listener), WAIT_S)
        self.zygote = AsyncChannel(connection)

    async def told(self) -> Message:
        return await asyncio.wait_for(self.zygote.receive(), WAIT_S)

    async def nothing_told(self) -> bool:
        """Whether the zygote has been told nothing up to now: a marker is the next thing that it hears."""
        await self.pool._tell_zygote(Retire())
        return await self.told() == Retire()

    async def add(self) -> HandLink:
        link = HandLink()
        await self.pool.add(link)  # type: ignore[arg-type]
        return link

    async def stop(self) -> None:
        for task in (self.running, self.pool._later):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self.zygote.close()
        self.listener.close()


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A pool of one spare worker, for which it has asked already."""
    monkeypatch.setattr(worker_pool, "REFILL_DELAY_S", 0.0)
    monkeypatch.setattr(worker_pool, "ZYGOTE_RETRY_S", 0.0)
    bench = Bench(tmp_path, spare=1)
    await bench.start()
    assert await bench.told() == Fork()
    yield bench
    await bench.stop()


def model(checkpoint: str, **parameters: str) -> dict[str, str]:
    return {"checkpoint": checkpoint, **parameters}


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_idle_worker_is_taken_at_once_and_the_next_one_forked(bench: Bench):
    link = await bench.add()
    assert await bench.pool.take(WAIT_S) is link
    assert await bench.told() == Fork()
    assert await bench.nothing_told()


async def test_who_finds_no_idle_worker_waits_for_the_next_one(bench: Bench):
    taking = asyncio.ensure_future(bench.pool.take(WAIT_S))
    assert await bench.told() == Fork()
    link = await bench.add()
    assert await taking is link
    spare = await bench.add()
    assert await bench.pool.take(WAIT_S) is spare


async def test_who_waits_too_long_is_told_and_no_longer_counted(bench: Bench):
    with pytest.raises(TimeoutError, match="no engine worker came"):
        await bench.pool.take(0.0)
    assert await bench.told() == Fork()
    bench.now_s = FORK_TIMEOUT_S
    await bench.pool.refill()
    assert await bench.told() == Fork()
    assert await bench.nothing_told()


async def test_a_worker_that_comes_as_the_time_is_over_is_not_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    loop = asyncio.get_running_loop()
    began_s, passed_s = loop.time(), 0.0
    monkeypatch.setattr(loop, "time", lambda: began_s + passed_s)
    taking = asyncio.ensure_future(bench.pool.take(WAIT_S))
    await settle()
    link = HandLink()
    adding = bench.pool.add(link)  # type: ignore[arg-type]

    def add_now() -> None:
        with contextlib.suppress(StopIteration):
            adding.send(None)

    loop.call_later(WAIT_S - 1, add_now)
    passed_s = WAIT_S + 1  # both are due in the same turn of the loop
    assert await taking is link


async def test_a_worker_too_many_is_retired(bench: Bench):
    await bench.add()
    extra = await bench.add()
    assert extra.channel.sent == [Retire()]


async def test_a_fork_that_never_says_hello_is_asked_for_again(bench: Bench):
    bench.now_s = FORK_TIMEOUT_S - 1
    await bench.pool.refill()
    assert await bench.nothing_told()
    bench.now_s = FORK_TIMEOUT_S
    await bench.pool.refill()
    assert await bench.told() == Fork()


async def test_an_idle_worker_that_dies_is_replaced(bench: Bench):
    link = await bench.add()
    link.ended.set_result(None)
    assert await bench.told() == Fork()
    assert link.channel.is_closed
    taking = asyncio.ensure_future(bench.pool.take(WAIT_S))
    await settle()
    fresh = await bench.add()
    assert await taking is fresh


async def test_a_worker_that_was_taken_dies_without_the_pools_grief(bench: Bench):
    link = await bench.add()
    await bench.pool.take(WAIT_S)
    assert await bench.told() == Fork()
    link.ended.set_result(None)
    await settle()
    assert await bench.nothing_told()


async def test_what_is_learned_replaces_idle_workers_and_is_told_to_the_next_zygote(bench: Bench):
    link = await bench.add()
    bench.pool.learn([model("/a"), model("/a")])
    assert [await bench.told(), await bench.told()] == [Learn(parameters=model("/a")), Fork()]
    assert link.channel.sent == [Retire()]
    bench.zygote.close()
    await bench.accept()
    assert [await bench.told(), await bench.told()] == [Learn(parameters=model("/a")), Fork()]


async def learned(bench: Bench, *models: dict[str, str]) -> HandLink:
    """An idle worker that knows these models."""
    bench.pool.learn(models)
    for parameters in models:
        assert await bench.told() == Learn(parameters=parameters)
    return await bench.add()


async def test_a_known_model_is_told_again_as_the_one_used_last_and_idle_workers_stay(bench: Bench):
    link = await learned(bench, model("/a"), model("/b"))
    bench.pool.learn([model("/a")])
    assert await bench.told() == Learn(parameters=model("/a"))
    assert await bench.nothing_told()
    assert link.channel.sent == []


@pytest.mark.parametrize("change", [{"engine": "other"}, {"dtype": "float32"}, {"files": "/elsewhere"}])
async def test_another_engine_dtype_or_folder_of_a_known_checkpoint_is_learned_too(
    bench: Bench, change: dict[str, str]
):
    link = await learned(bench, model("/a"))
    bench.pool.learn([model("/a", **change)])
    assert [await bench.told(), await bench.told()] == [Learn(parameters=model("/a", **change)), Fork()]
    assert link.channel.sent == [Retire()]


async def test_however_many_are_learned_the_next_is_too_and_the_one_unused_for_longest_forgotten(bench: Bench):
    known = [model(f"/{number}") for number in range(MAX_LEARNED)]
    await learned(bench, *known)
    await learned_anew(bench, model("/one-more"))
    bench.pool.learn([known[1]])
    assert await bench.told() == Learn(parameters=known[1])
    assert await bench.nothing_told()
    await learned_anew(bench, known[0])


async def learned_anew(bench: Bench, parameters: dict[str, str]) -> None:
    """It was not known: the idle worker is replaced."""
    bench.pool.learn([parameters])
    assert [await bench.told(), await bench.told()] == [Learn(parameters=parameters), Fork()]
    await bench.add()


async def test_a_new_zygote_first_learns_what_was_used_last(bench: Bench):
    models = [model(f"/{number}") for number in range(LEARNED_AHEAD + 2)]
    bench.pool.learn(models)
    for parameters in models:
        assert await bench.told() == Learn(parameters=parameters)
    bench.zygote.close()
    await bench.accept()
    for parameters in models[2:]:
        assert await bench.told() == Learn(parameters=parameters)
    assert await bench.told() == Fork()


async def test_a_model_is_learned_a_moment_after_its_start(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_pool, "REFILL_DELAY_S", WAIT_S)
    bench.pool.learn([model("/a")])
    assert await bench.nothing_told()


async def test_a_worker_whose_process_ends_is_noticed_by_who_listens_to_it():
    ours, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec("sleep", "600")
    with theirs:
        channel = AsyncChannel(ours)
        channel.peer_pid = process.pid
        link = WorkerLink(channel)
        listening = asyncio.ensure_future(channel.receive())
        await asyncio.sleep(0)
        await asyncio.wait_for(link.kill(), WAIT_S)
        with pytest.raises(ChannelClosed):
            await asyncio.wait_for(listening, WAIT_S)
        assert ours.fileno() == -1
        await link.kill()
        await process.wait()
