"""The seam between a gateway, which owns streams, and the control loop, which owns capacity (decision 6)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NewType, Protocol

from serverless_triton.scheduler.errors import AdmissionTimeout, NoCapacity, SchedulerError
from serverless_triton.scheduler.identity import ANONYMOUS, Caller

StreamId = NewType("StreamId", str)
ServerName = NewType("ServerName", str)
ReplicaId = NewType("ReplicaId", str)

# What was there of the model before: nothing, or its stub, READY in Triton without an engine.
StartState = Literal["cold", "parked"]

ADMISSION_SPAN = "admission"  # from asking for a place until having one; what a start does is within it


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One stretch of a start, part of its parent if it has one. Seconds on the scheduler's clock; may overlap."""

    name: str
    start_s: float
    end_s: float
    parent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactness:
    """What a replica's engine promises of a stream that moves: between two of one contract, both exact, it goes on to
    the bit.
    """

    kind: str  # "exact" or "best_effort"
    reason: str
    contract: str  # digest of all that decides a token's bits


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTerms:
    """A start's seconds by cause: room made, the queue of its server's loads, its bytes' way, all else."""

    room_s: float = 0.0
    queue_s: float
    transfer_s: float
    fixed_s: float

    @property
    def total_s(self) -> float:
        """From the decision until the replica is ready."""
        return self.room_s + self.queue_s + self.transfer_s + self.fixed_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was predicted of a start, give or take `uncertainty_s` (a standard error), beside what it took."""

    predicted: StartTerms
    uncertainty_s: float
    actual: StartTerms

    @property
    def relative_error(self) -> float:
        """Of the total, as a share of what it took; never negative."""
        return abs(self.predicted.total_s - self.actual.total_s) / max(self.actual.total_s, 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRecord:
    """How a replica came to be, for the receipts of the requests that waited for it."""

    state: StartState = "cold"
    tier: str  # where the weights came from: "dram", "ssd", "page_cache", "remote"
    bytes: int
    predicted_s: float
    spans: tuple[Span, ...]
    comparison: Comparison | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A place on a replica, held by one stream until `finish`. Eviction sees the reference."""

    stream: StreamId
    model: str
    server: ServerName
    grpc_address: str
    replica: ReplicaId
    epoch: int
    start: StartRecord | None  # None: the replica was ready when the stream came
    exactness: Exactness | None = None
    definition: str = ""  # of the model, as the replica was started with it
    version: str = ""  # which the replica runs; "" where nobody knows
    lost: asyncio.Future[str] = field(
        repr=False, compare=False
    )  # resolves to the reason once the replica is known dead

    def goes_on_from(self, earlier: Assignment) -> bool:
        """Whether its engine may continue an answer that the earlier one's began: one model, or one contract."""
        if self.definition == earlier.definition:
            return True
        ours, theirs = self.exactness, earlier.exactness
        return ours is not None and theirs is not None and ours.contract == theirs.contract


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a stream that came for this model now would meet."""

    model: str
    waiting: int  # streams that wait for the model, those whose start is under way included
    queue_position: int  # the newcomer's among them; 0: a place is free
    estimated_start_s: float | None  # until it had a place; None where nothing says


class Admission(Protocol):
    """What a gateway asks of the control loop."""

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
        """A place for the stream, the model started first if need be. `avoid` names replicas it broke on before;
        without a `version` it is the latest that is served.

        Where places are scarce they go between tenants by weight, and within one by Triton's `priority` and age.
        Raises UnknownModel, LoadFailed, NoCapacity, AdmissionTimeout. Cancelling the call gives the place up.
        """

    def finish(self, assignment: Assignment, *, broken: bool = False) -> None:
        """The stream ended or moved away; the reference is given back. Idempotent.

        `broken`: the replica can serve nobody any more, so it takes no more streams, and ends with its last one.
        """

    def progress(self, stream: StreamId, *, input_tokens: int, output_tokens: int) -> None:
        """A stream that has a place holds so many tokens by now. Told a few times a second, and of no other stream."""

    async def outlook(self, model: str, *, caller: Caller = ANONYMOUS, priority: int = 0) -> Outlook:
        """What a stream that came now would meet. Raises UnknownModel, ModelTooLarge."""

    async def warm(self, model: str, *, timeout_s: float) -> None:
        """Start the model somewhere unless it runs (RepositoryModelLoad). Raises as `admit` does."""

    async def release(self, model: str, *, timeout_s: float) -> None:
        """Stop every replica of the model once its streams have ended (RepositoryModelUnload)."""

    def ready_models(self) -> frozenset[str]:
        """Models with a ready replica."""

    def runs(self, model: str, version: str) -> bool:
        """Whether a replica of that version is ready."""

    def failed_definitions(self) -> Mapping[str, str]:
        """By model: why what the repository holds of it now does not start, while replicas of an older state serve."""


class HeldPlace:
    """A place that `admit` gave, to be given back by whoever is first to see that it is not needed any more."""

    def __init__(self, admission: Admission, assignment: Assignment) -> None:
        self._admission = admission
        self._assignment: Assignment | None = assignment

    def give_back(self, *, broken: bool = False) -> None:
        """Once; nothing after that."""
        assignment, self._assignment = self._assignment, None
        if assignment is not None:
            self._admission.finish(assignment, broken=broken)


class FakeAdmission:
    """An Admission with a few servers and no weights, for tests of what stands on the seam.

    Every model is ready on every server, one replica each. Tests script refusals with `refuse`, hold callers back with
    `hold`, kill with `lose`, tell `outlooks` and `failed` by model, and read `claims`, `admitted`, `finished` and
    `progressed`.
    """

    def __init__(
        self,
        servers: Mapping[str, str] | None = None,
        start: StartRecord | None = None,
        exactness: Exactness | None = None,
    ) -> None:
        self._servers = dict(servers or {f"server-{n}": f"fake:{n}" for n in range(5)})
        self._start = start
        self._exactness = exactness
        self._refusals: deque[SchedulerError] = deque()
        self._gate = asyncio.Event()
        self._gate.set()
        self._ready: set[str] = set()
        self.outlooks: dict[str, Outlook] = {}
        self.failed: dict[str, str] = {}
        self.claims: list[tuple[str, int]] = []  # tenant and priority of every call of `admit` and `outlook`
        self.admitted: list[Assignment] = []
        self.finished: list[Assignment] = []
        self.broken: list[ReplicaId] = []
        self.progressed: list[tuple[StreamId, int, int]] = []  # input and output tokens

    @property
    def held(self) -> list[Assignment]:
        """Assignments whose reference has not been given back."""
        return [a for a in self.admitted if not any(a is f for f in self.finished)]

    def refuse(self, error: SchedulerError) -> None:
        """The next call fails with this."""
        self._refusals.append(error)

    def hold(self) -> None:
        self._gate.clear()

    def release_held(self) -> None:
        self._gate.set()

    def lose(self, assignment: Assignment, reason: str = "worker died") -> None:
        """The replica is known dead."""
        if not assignment.lost.done():
            assignment.lost.set_result(reason)

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
        self.claims.append((caller.tenant, priority))
        await self._pass(timeout_s)
        for server, address in sorted(self._servers.items()):
            replica = ReplicaId(f"{model}@{server}")
            if replica not in avoid:
                return self._assign(stream, model, ServerName(server), address, replica)
        raise NoCapacity(f"model '{model}' broke on every server")

    def finish(self, assignment: Assignment, *, broken: bool = False) -> None:
        self.finished.append(assignment)
        if broken:
            self.broken.append(assignment.replica)

    def progress(self, stream: StreamId, *, input_tokens: int, output_tokens: int) -> None:
        self.progressed.append((stream, input_tokens, output_tokens))

    async def outlook(self, model: str, *, caller: Caller = ANONYMOUS, priority: int = 0) -> Outlook:
        self.claims.append((caller.tenant, priority))
        free = Outlook(model=model, waiting=0, queue_position=0, estimated_start_s=0.0)
        return self.outlooks.get(model, free)

    async def warm(self, model: str, *, timeout_s: float) -> None:
        await self._pass(timeout_s)
        self._ready.add(model)

    async def release(self, model: str, *, timeout_s: float) -> None:
        await self._pass(timeout_s)
        self._ready.discard(model)

    def ready_models(self) -> frozenset[str]:
        return frozenset(self._ready)

    def runs(self, model: str, version: str) -> bool:
        return model in self._ready

    def failed_definitions(self) -> Mapping[str, str]:
        return self.failed

    async def _pass(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self._gate.wait(), timeout_s)
        except asyncio.TimeoutError:
            raise AdmissionTimeout(f"not started within {timeout_s:.3f} s") from None
        if self._refusals:
            raise self._refusals.popleft()

    def _assign(self, stream: StreamId, model: str, server: ServerName, address: str, replica: ReplicaId) -> Assignment:
        self._ready.add(model)
        assignment = Assignment(
            stream=stream,
            model=model,
            server=server,
            grpc_address=address,
            replica=replica,
            epoch=1,
            start=self._start,
            exactness=self._exactness,
            lost=asyncio.get_running_loop().create_future(),
        )
        self.admitted.append(assignment)
        return assignment
