"""Open sequences of other backends' models: requests with one `sequence_id` go to one replica, one after the other.

A sequence keeps the place that its first request got, so its replica is not evicted, until its last request, or until
nobody has continued it for as long as Triton itself would wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.admission import Admission, Assignment
from serverless_triton.scheduler.catalogue import ModelEntry
from serverless_triton.scheduler.errors import AdmissionTimeout, InvalidRequest, StreamLost

log = logging.getLogger(__name__)

Key = tuple[str, int | str]
_ID_KINDS = ("int64_param", "uint64_param", "string_param")


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceStep:
    """What a request says of its sequence."""

    model: str
    id: int | str
    starts: bool
    ends: bool
    idle_s: float  # how long the sequence stays open without a request

    @property
    def key(self) -> Key:
        return self.model, self.id


def read_step(request: pb.ModelInferRequest, entry: ModelEntry) -> SequenceStep | None:
    """None where it is of no sequence, or its model knows none. Raises InvalidRequest."""
    idle_s = None if entry.foreign is None else entry.foreign.sequence_idle_s
    sequence_id = _parameter(request, "sequence_id", _ID_KINDS)
    if idle_s is None or not sequence_id:
        return None
    return SequenceStep(
        model=entry.name,
        id=sequence_id % 2**64 if isinstance(sequence_id, int) else sequence_id,  # unsigned, as Triton has them
        starts=bool(_parameter(request, "sequence_start", ("bool_param",))),
        ends=bool(_parameter(request, "sequence_end", ("bool_param",))),
        idle_s=idle_s,
    )


def _parameter(request: pb.ModelInferRequest, name: str, kinds: tuple[str, ...]) -> int | str | None:
    parameter = request.parameters.get(name)
    if parameter is None:
        return None
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in kinds:
        raise InvalidRequest(f"invalid value type for '{name}' parameter, expected {' or '.join(kinds)}.")
    found: int | str = getattr(parameter, kind)
    return found


@dataclass(slots=True, eq=False)
class _Sequence:
    """`last` is done when its newest request and all before it are, so each waits for the one before it."""

    tenant: str
    last: asyncio.Future[None]
    place: Assignment | None = None
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class Sequences:
    """A gateway's, on its asyncio loop."""

    admission: Admission
    _open: dict[Key, _Sequence] = field(default_factory=dict)

    @asynccontextmanager
    async def turn(
        self, step: SequenceStep, tenant: str, timeout_s: float, admit: Callable[[], Awaitable[Assignment]]
    ) -> AsyncIterator[Turn]:
        """The sequence's place, when all its requests before this one are over. Cancelling gives the turn up.

        Raises InvalidRequest where it was not begun or is another tenant's, StreamLost where its replica is gone,
        AdmissionTimeout, and what `admit` does.
        """
        sequence = self._find(step, tenant)
        before, done = sequence.last, asyncio.get_running_loop().create_future()
        sequence.last = done
        try:
            await self._wait(before, step, timeout_s)
            turn = Turn(await self._place(sequence, step, admit))
            try:
                yield turn
            finally:
                if step.ends or turn.broken:
                    self._give_back(sequence, broken=turn.broken)
        finally:
            self._over(sequence, step, before, done)

    def close(self) -> None:
        """Gives every place back."""
        for sequence in self._open.values():
            self._give_back(sequence)
        self._open.clear()

    def _find(self, step: SequenceStep, tenant: str) -> _Sequence:
        sequence = self._open.get(step.key)
        if sequence is None:
            if not step.starts:
                raise _not_begun(step)
            nobody = asyncio.get_running_loop().create_future()
            nobody.set_result(None)
            sequence = self._open[step.key] = _Sequence(tenant, nobody)
        elif sequence.tenant != tenant:
            raise InvalidRequest(f"sequence {step.id} of model '{step.model}' is in use; take another id")
        return sequence

    async def _wait(self, before: asyncio.Future[None], step: SequenceStep, timeout_s: float) -> None:
        await asyncio.wait({before}, timeout=timeout_s)
        if not before.done():
            late = f"sequence {step.id} of model '{step.model}' had requests before this one for {timeout_s:.3g} s"
            raise AdmissionTimeout(late)

    async def _place(
        self, sequence: _Sequence, step: SequenceStep, admit: Callable[[], Awaitable[Assignment]]
    ) -> Assignment:
        """The one that it has, which knows of no start any more, or a new one where it begins."""
        lost = None if sequence.place is None else sequence.place.lost
        if lost is not None and lost.done():
            self._give_back(sequence)
            if not step.starts:
                reason = "its replica was given up" if lost.cancelled() else lost.result()
                raise StreamLost(f"sequence {step.id} of model '{step.model}' was lost ({reason}): begin it anew")
        if sequence.place is not None:
            return replace(sequence.place, start=None)
        if not step.starts:  # its first request failed, or its last one is over
            raise _not_begun(step)
        sequence.place = await admit()
        return sequence.place

    def _over(
        self, sequence: _Sequence, step: SequenceStep, before: asyncio.Future[None], done: asyncio.Future[None]
    ) -> None:
        """A request left, whose turn is over when those before it are. Nobody may come after it for the idle time."""
        if not before.done():
            before.add_done_callback(lambda _: self._over(sequence, step, before, done))
            return
        done.set_result(None)
        if sequence.timer is not None:
            sequence.timer.cancel()
        if sequence.place is None:
            self._forget(sequence, step)
        else:
            sequence.timer = asyncio.get_running_loop().call_later(step.idle_s, self._expire, sequence, step)

    def _expire(self, sequence: _Sequence, step: SequenceStep) -> None:
        if sequence.last.done():
            log.info("sequence_idle model=%s idle_s=%g", step.model, step.idle_s)
            self._give_back(sequence)
            self._forget(sequence, step)

    def _forget(self, sequence: _Sequence, step: SequenceStep) -> None:
        """Unless somebody waits for a turn in it."""
        if sequence.last.done() and self._open.get(step.key) is sequence:
            del self._open[step.key]

    def _give_back(self, sequence: _Sequence, *, broken: bool = False) -> None:
        if sequence.timer is not None:
            sequence.timer.cancel()
        if sequence.place is not None:
            self.admission.finish(sequence.place, broken=broken)
            sequence.place = None


@dataclass(slots=True)
class Turn:
    """One request's place. It sets `broken` where the replica can serve nobody any more.

    `give_up` is for when its answer is over before its client has heard so; a place in a sequence is the sequence's.
    """

    assignment: Assignment
    broken: bool = False
    give_up: Callable[[], None] = lambda: None


def _not_begun(step: SequenceStep) -> InvalidRequest:
    """In Triton's words."""
    return InvalidRequest(
        f"inference request for sequence {step.id} to model '{step.model}' must specify the START flag on the first "
        "request of the sequence"
    )
