"""The seam where several schedulers share a cluster: whoever leads is asked, this process's control loop or another's.

A request that waits when the leader changes is asked again of the next one, for what is left of its time, and its
client notices nothing but that. Places that streams hold are told to every new leader.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from serverless_triton.scheduler import admission_pb2 as pb
from serverless_triton.scheduler.admission import Assignment, Outlook, ReplicaId, StreamId
from serverless_triton.scheduler.desk import Desk, Place
from serverless_triton.scheduler.errors import AdmissionTimeout, LoadFailed
from serverless_triton.scheduler.identity import ANONYMOUS, Caller
from serverless_triton.scheduler.leader_client import RETRY_S, LeaderAway, LeaderClient
from serverless_triton.scheduler.status import cluster_status

logger = logging.getLogger(__name__)

T = TypeVar("T")

QUESTION_S = 10.0  # for a leader to come, of questions that have no time of their own


class SharedAdmission:
    """Implements `Admission`. `lead`, `follow` and `wait` say whom it asks."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._desk: Desk | None = None
        self._client: LeaderClient | None = None
        self._changed = asyncio.Event()
        self._held: dict[Place, Assignment] = {}

    # Whom it asks

    def lead(self, desk: Desk) -> None:
        """We lead ourselves."""
        self._turn_to(desk, None)
        desk.come(self._gateway, self.held(), self.lost)

    def follow(self, client: LeaderClient) -> None:
        self._turn_to(None, client)

    def wait(self) -> None:
        """Nobody leads, as far as we know."""
        self._turn_to(None, None)

    def _turn_to(self, desk: Desk | None, client: LeaderClient | None) -> None:
        self._desk, self._client = desk, client
        self._changed.set()
        self._changed = asyncio.Event()

    def held(self) -> Iterable[Place]:
        """What our streams have."""
        return list(self._held)

    def lost(self, place: Place, reason: str) -> None:
        """The leader says that a place's replica is dead."""
        assignment = self._held.get(place)
        if assignment is not None and not assignment.lost.done():
            assignment.lost.set_result(reason)

    # Admission

    async def admit(
        self,
        stream: StreamId,
        model: str,
        *,
        timeout_s: float,
        avoid: frozenset[ReplicaId] = frozenset(),
        caller: Caller = ANONYMOUS,
        priority: int = 0,
        version: str = "",
    ) -> Assignment:
        def ask(leader: Desk | LeaderClient, left_s: float) -> Coroutine[Any, Any, Assignment]:
            asked = leader.loop if isinstance(leader, Desk) else leader
            return asked.admit(
                stream, model, timeout_s=left_s, avoid=avoid, caller=caller, priority=priority, version=version
            )

        assignment = await self._ask(ask, timeout_s, f"model '{model}' did not start within {round(timeout_s, 3):g} s")
        self._held[stream, assignment.replica] = assignment
        if self._desk is not None:
            self._desk.give(self._gateway, assignment)
        return assignment

    def finish(self, assignment: Assignment, *, broken: bool = False) -> None:
        place = assignment.stream, assignment.replica
        if self._held.pop(place, None) is None:
            return
        if self._desk is not None:
            self._desk.finish(self._gateway, place, broken=broken)
        elif self._client is not None:
            told = pb.Finished(place=pb.Place(stream=place[0], replica=place[1]), broken=broken)
            self._client.tell(pb.GatewayNews(finished=told))

    def progress(self, stream: StreamId, *, input_tokens: int, output_tokens: int) -> None:
        if self._desk is not None:
            self._desk.loop.progress(stream, input_tokens=input_tokens, output_tokens=output_tokens)
        elif self._client is not None:
            told = pb.Progress(stream=stream, input_tokens=input_tokens, output_tokens=output_tokens)
            self._client.tell(pb.GatewayNews(progress=told))

    async def outlook(self, model: str, *, caller: Caller = ANONYMOUS, priority: int = 0) -> Outlook:
        def ask(leader: Desk | LeaderClient, left_s: float) -> Coroutine[Any, Any, Outlook]:
            asked = leader.loop if isinstance(leader, Desk) else leader
            return asked.outlook(model, caller=caller, priority=priority)

        return await self._ask(ask, QUESTION_S, "no scheduler leads")

    async def warm(self, model: str, *, timeout_s: float) -> None:
        def ask(leader: Desk | LeaderClient, left_s: float) -> Coroutine[Any, Any, None]:
            return (leader.loop if isinstance(leader, Desk) else leader).warm(model, timeout_s=left_s)

        await self._ask(ask, timeout_s, f"model '{model}' did not start within {round(timeout_s, 3):g} s")

    async def release(self, model: str, *, timeout_s: float) -> None:
        def ask(leader: Desk | LeaderClient, left_s: float) -> Coroutine[Any, Any, None]:
            return (leader.loop if isinstance(leader, Desk) else leader).release(model, timeout_s=left_s)

        await self._ask(ask, timeout_s, f"model '{model}' was not unloaded within {round(timeout_s, 3):g} s")

    def ready_models(self) -> frozenset[str]:
        if self._desk is not None:
            return self._desk.loop.ready_models()
        return frozenset(running.model for running in self._picture.running)

    def runs(self, model: str, version: str) -> bool:
        if self._desk is not None:
            return self._desk.loop.runs(model, version)
        return any(one.model == model and one.version in ("", version) for one in self._picture.running)

    def failed_definitions(self) -> Mapping[str, str]:
        return self._picture.failed if self._desk is None else self._desk.loop.failed_definitions()

    def can_serve(self) -> bool:
        """Whether there is a server that takes starts, and somebody who decides."""
        if self._desk is None:
            return self._picture.can_serve
        return any(server.takes_starts for server in self._desk.loop.cluster.servers.values())

    async def status(self) -> dict[str, Any]:
        """The leader's."""

        async def ask(leader: Desk | LeaderClient, left_s: float) -> dict[str, Any]:
            return cluster_status(leader.loop) if isinstance(leader, Desk) else await leader.status()

        return await self._ask(ask, QUESTION_S, "no scheduler leads")

    @property
    def _picture(self) -> pb.Picture:
        return pb.Picture() if self._client is None else self._client.picture

    async def _ask(
        self, question: Callable[[Desk | LeaderClient, float], Coroutine[Any, Any, T]], timeout_s: float, late: str
    ) -> T:
        """Of whoever leads, until one answers."""
        ends_s = time.monotonic() + timeout_s
        while (left_s := ends_s - time.monotonic()) > 0 or timeout_s <= 0:
            leader, changed = self._desk or self._client, self._changed
            try:
                if leader is None:
                    await asyncio.wait_for(changed.wait(), max(0.0, left_s))
                else:
                    return await _unless(changed, question(leader, left_s))
            except asyncio.TimeoutError:
                break
            except LeaderAway:
                await asyncio.sleep(RETRY_S)
            except LoadFailed:  # a control loop that ends tells everybody so
                if changed is self._changed:
                    raise
        raise AdmissionTimeout(late)


async def _unless(changed: asyncio.Event, asking: Coroutine[Any, Any, T]) -> T:
    """Raises LeaderAway where another leads first."""
    tasks: tuple[asyncio.Task[T], asyncio.Task[Any]]
    tasks = asyncio.ensure_future(asking), asyncio.ensure_future(changed.wait())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise LeaderAway("another scheduler leads")
    finally:
        await _end(tasks)


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    waits: Awaitable[Any] = asyncio.gather(*tasks, return_exceptions=True)
    await waits
