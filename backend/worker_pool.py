"""The agent's idle workers: forked ahead by the zygote, handed out one by one, each death noticed at once.

A worker belongs to the pool until it is taken; then it is the taker's, and the pool asks the zygote for the next. A
fork that was asked for and says no hello in time has failed, and is asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from serverless_triton.backend.async_channel import AsyncChannel
from serverless_triton.backend.channel import ChannelClosed
from serverless_triton.backend.messages import Fork, Learn, Message, ProtocolError, Retire
from serverless_triton.backend.processes import ProcessHandle

logger = logging.getLogger(__name__)

ZYGOTE_RETRY_S = 0.2
MAX_LEARNED = 64  # as many as an engine's builder keeps
LEARNED_AHEAD = 16  # by a new zygote before its first fork: each takes a fraction of a second, and starts wait for it
REFILL_DELAY_S = 0.5
FORK_TIMEOUT_S = 5.0

Learnt = tuple[str, str, str]  # an engine, the folder with the files that it reads, a dtype


class WorkerLink:
    """One worker process: its socket, its pidfd, and a future that resolves when it has ended."""

    def __init__(self, channel: AsyncChannel) -> None:
        """Raises ProcessLookupError when the worker is gone already."""
        self.channel = channel
        self.process = ProcessHandle(channel.peer_pid)
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self.process.fileno(), self._on_end)

    @property
    def pid(self) -> int:
        return self.process.pid

    def _on_end(self) -> None:
        self._loop.remove_reader(self.process.fileno())
        self.process.close()
        self.channel.close()
        self.ended.set_result(None)

    async def kill(self) -> None:
        """Returns when the process is gone, and its memory with it."""
        if not self.ended.done():
            self.process.kill()
        await asyncio.shield(self.ended)


class WorkerPool:
    """Keeps `spare` idle workers ready."""

    def __init__(self, zygote_socket: Path, spare: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._zygote_socket = zygote_socket
        self._spare = spare
        self._idle: deque[WorkerLink] = deque()
        self._waiting: deque[asyncio.Future[WorkerLink]] = deque()
        self._clock = clock
        self._forks: deque[float] = deque()  # by when each that was asked for must have said hello
        self._zygote: AsyncChannel | None = None
        self._learned: OrderedDict[Learnt, Learn] = OrderedDict()  # the model used last at the end
        self._untold: OrderedDict[Learnt, Learn] = OrderedDict()  # what the zygote has still to hear
        self._idle_know_less = False
        self.has_forked = False
        self._later: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Keep a connection to the zygote, also to the next one; until cancelled."""
        while True:
            try:
                self._zygote = await self._connect()
                await self._serve(self._zygote)
            except (OSError, ChannelClosed, ProtocolError) as error:
                logger.debug("zygote_away error=%s", error)
            finally:
                self._forget_zygote()
            await asyncio.sleep(ZYGOTE_RETRY_S)

    async def _connect(self) -> AsyncChannel:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, str(self._zygote_socket))
        except OSError:
            connection.close()
            raise
        return AsyncChannel(connection)

    async def _serve(self, zygote: AsyncChannel) -> None:
        while len(self._learned) > LEARNED_AHEAD:
            self._learned.popitem(last=False)
        self._untold, self._idle_know_less = self._learned.copy(), False
        keeping = asyncio.ensure_future(self._keep_full())
        try:
            await zygote.receive()  # a zygote never speaks; this returns by its end
        finally:
            keeping.cancel()

    def _forget_zygote(self) -> None:
        self._forks.clear()
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None

    async def _keep_full(self) -> None:
        while True:
            await self._teach()
            await self.refill()
            await asyncio.sleep(FORK_TIMEOUT_S)

    async def _tell_zygote(self, message: Message) -> None:
        if self._zygote is not None:
            with contextlib.suppress(ChannelClosed):  # `run` notices, and tells the next one
                await self._zygote.send(message)

    def learn(self, models: Iterable[dict[str, str]]) -> None:
        """These models are in use: have the zygote keep their weight-free parts, or prepare them.

        It hears so a moment later, since a start may be under way; idle workers forked without them are replaced then.
        It keeps as many as are learned here, and forgets the same.
        """
        for parameters in models:
            key = _learnt(parameters)
            self._idle_know_less |= key not in self._learned
            for models_by_use in (self._learned, self._untold):
                models_by_use[key] = Learn(parameters=parameters)
                models_by_use.move_to_end(key)
        while len(self._learned) > MAX_LEARNED:
            self._learned.popitem(last=False)
        self._refill_soon()

    async def _teach(self) -> None:
        untold, self._untold = self._untold, OrderedDict()
        for message in untold.values():
            await self._tell_zygote(message)
        if self._idle_know_less:
            self._idle_know_less = False
            while self._idle:
                await self._retire(self._idle.popleft())

    async def refill(self) -> None:
        """Ask for the workers that are missing."""
        if self._zygote is None:
            return  # all is asked of the next one
        now_s = self._clock()
        while self._forks and self._forks[0] <= now_s:
            self._forks.popleft()
        missing = self._spare + len(self._waiting) - len(self._idle) - len(self._forks)
        self._forks.extend([now_s + FORK_TIMEOUT_S] * missing)
        for _ in range(missing):
            await self._tell_zygote(Fork())

    async def add(self, link: WorkerLink) -> None:
        """A worker said that it is idle."""
        if self._forks:
            self._forks.popleft()
        self.has_forked = True
        link.ended.add_done_callback(lambda _: self._forget(link))
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(link)
                return
        if len(self._idle) >= self._spare:
            await self._retire(link)
        else:
            self._idle.append(link)

    async def _retire(self, link: WorkerLink) -> None:
        with contextlib.suppress(ChannelClosed):
            await link.channel.send(Retire())

    def _forget(self, link: WorkerLink) -> None:
        link.channel.close()
        if link in self._idle:
            self._idle.remove(link)
            self._refill_soon()

    async def take(self, timeout_s: float) -> WorkerLink:
        """An idle worker, the caller's from now on. Raises TimeoutError when none comes in time."""
        if not self._idle:
            return await self._wait(timeout_s)
        link = self._idle.popleft()
        self._refill_soon()
        return link

    def _refill_soon(self) -> None:
        if self._later is None or self._later.done():
            self._later = asyncio.ensure_future(self._refill_later())

    async def _refill_later(self) -> None:
        """A fork beside a start takes its processor; the next start waits milliseconds for one if it comes too soon."""
        await asyncio.sleep(REFILL_DELAY_S)
        await self._teach()
        await self.refill()

    async def _wait(self, timeout_s: float) -> WorkerLink:
        waiter: asyncio.Future[WorkerLink] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await self.refill()
        try:
            await asyncio.wait({waiter}, timeout=timeout_s)  # unlike `wait_for` it loses no worker that comes just now
        finally:
            with contextlib.suppress(ValueError):  # `add` took it out
                self._waiting.remove(waiter)
        if not waiter.done():
            raise TimeoutError(f"no engine worker came within {timeout_s:.0f} s; see the zygote's log")
        return waiter.result()


def _learnt(parameters: Mapping[str, str]) -> Learnt:
    directory = parameters.get("files") or parameters["checkpoint"]
    return parameters.get("engine", ""), directory, parameters.get("dtype", "auto")
