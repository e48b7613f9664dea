"""What one start does to the world, and where its time went: the engine, and beside it Triton's stub.

On a parked stub it is the engine alone, of another backend's model Triton's load alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from serverless_triton.scheduler.admission import (
    ADMISSION_SPAN,
    Comparison,
    ReplicaId,
    ServerName,
    Span,
    StartRecord,
    StartTerms,
)
from serverless_triton.scheduler.effects import Effects, EngineOrder, EngineStarted
from serverless_triton.scheduler.estimator import FOREIGN_TIER, StartEstimate
from serverless_triton.scheduler.policy import Candidate
from serverless_triton.scheduler.waiting_room import ModelOrder


def permit(epoch: int, replica: ReplicaId, order: ModelOrder, candidate: Candidate) -> EngineOrder:
    """To start this replica where the candidate is."""
    return EngineOrder(
        epoch=epoch,
        replica=replica,
        model=order.view.name,
        parameters=order.parameters,
        parked=candidate.parked,
        foreign=order.view.foreign,
        measured=order.view.models if order.view.measured else (),
    )


@dataclass(frozen=True, slots=True)
class StartSequence:
    """Starts replicas, each by one call of `run`."""

    effects: Effects
    clock: Callable[[], float]

    async def run(self, server: ServerName, order: EngineOrder) -> EngineStarted:
        """Returns when requests reach the engine. Raises EffectFailed."""
        if order.foreign:
            return await self._load_foreign(server, order)
        if order.parked is not None:
            return await self.effects.start_engine(server, order)
        return await self._start_both(server, order)

    async def _start_both(self, server: ServerName, order: EngineOrder) -> EngineStarted:
        """Engine and stub at the same time: the stub's own start hides behind the weights, or they behind it."""
        engine, stub = await asyncio.gather(
            self.effects.start_engine(server, order),
            self._timed_load(server, order),
            return_exceptions=True,
        )
        for outcome in (engine, stub):  # the engine's own error says more than the stub's
            if isinstance(outcome, BaseException):
                raise outcome
        assert isinstance(engine, EngineStarted)
        assert isinstance(stub, Span)
        return replace(engine, spans=(*engine.spans, *_without_waiting(stub, engine)))

    async def _load_foreign(self, server: ServerName, order: EngineOrder) -> EngineStarted:
        before = await self.effects.measure(server, order.measured) if order.measured else 0
        start_s = self.clock()
        await self.effects.load_foreign(server, order.model)
        load = Span(name="triton.load", start_s=start_s, end_s=self.clock(), parent=ADMISSION_SPAN)
        after = await self.effects.measure(server, order.measured) if order.measured else 0
        grown = max(0, after - before) if order.measured else None
        return EngineStarted(version=0, tier=FOREIGN_TIER, bytes=0, spans=(load,), host_bytes=grown)

    async def _timed_load(self, server: ServerName, order: EngineOrder) -> Span:
        start_s = self.clock()
        await self.effects.load_model(server, order.model, order.replica)
        return Span(name="triton.load", start_s=start_s, end_s=self.clock(), parent=ADMISSION_SPAN)


READ_SPAN, QUEUE_SPAN = "store.load", "store.queue"  # as workers name them; the second lies within the first


def read_s_of(spans: Iterable[Span]) -> tuple[float | None, float]:
    """How long its bytes took, None where no store brought them, and how long they were queued for before."""
    seconds = {span.name: span.end_s - span.start_s for span in spans}
    queue_s = seconds.get(QUEUE_SPAN, 0.0)
    return (max(0.0, seconds[READ_SPAN] - queue_s) if READ_SPAN in seconds else None), queue_s


def actual_terms(engine: EngineStarted, *, room_s: float, total_s: float, attach_s: float) -> StartTerms:
    """What a start took by cause; `attach_s` is what a read there takes whatever its bytes, and a fixed cost."""
    read_s, queue_s = read_s_of(engine.spans)
    transfer_s = max(0.0, (read_s or 0.0) - attach_s)
    fixed_s = max(0.0, total_s - room_s - queue_s - transfer_s)
    return StartTerms(room_s=room_s, queue_s=queue_s, transfer_s=transfer_s, fixed_s=fixed_s)


def start_record(
    engine: EngineStarted, estimate: StartEstimate, actual: StartTerms, began_s: float, room_s: float
) -> StartRecord:
    """Of a start that was decided at `began_s` and had its room at `room_s`."""
    made_room = Span(name="make_room", start_s=began_s, end_s=room_s, parent=ADMISSION_SPAN)
    return StartRecord(
        state=estimate.state,
        tier=engine.tier,
        bytes=engine.bytes,
        predicted_s=estimate.total_s,
        comparison=Comparison(predicted=estimate.terms, uncertainty_s=estimate.uncertainty_s, actual=actual),
        spans=(made_room, *engine.spans),
    )


def _without_waiting(load: Span, engine: EngineStarted) -> tuple[Span, ...]:
    """Triton's load, less the part in which its stub only waited for the engine: that part the engine gated."""
    if engine.stub_waited_from_s is None:
        return (load,)
    waited_until_s = max((span.end_s for span in engine.spans), default=load.start_s)
    return (replace(load, end_s=engine.stub_waited_from_s), replace(load, name="triton.ready", start_s=waited_until_s))
