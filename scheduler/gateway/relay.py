"""The life of one stream: a place on a replica, tokens from there to the client, and another place when that one dies.

    admit ─► call ─► accept · journal · compose ─► … ─► finish reason
      ▲                       │
      └── the replica died ◄──┘   (attempt + 1, avoiding it, from the journal's tokens)

Every place that `admit` gives is given back by exactly one `finish`: when the attempt is over, or by its watchdog while
the client takes nothing. Nothing is read ahead of the client: a slow reader slows its own replica stream. Decisions
about capacity are the control loop's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.backend.messages import TRACEPARENT
from serverless_triton.scheduler.admission import (
    ADMISSION_SPAN,
    Admission,
    Assignment,
    HeldPlace,
    Outlook,
    ReplicaId,
    Span,
    StreamId,
)
from serverless_triton.scheduler.errors import AdmissionTimeout, SchedulerError, StreamLost
from serverless_triton.scheduler.gateway.composer import Composer, MalformedUpdate, TokenUpdate, read_update
from serverless_triton.scheduler.gateway.metrics import GatewayMetrics
from serverless_triton.scheduler.gateway.notices import tell_outlook, tell_receipts
from serverless_triton.scheduler.gateway.request import GenerationRequest
from serverless_triton.scheduler.gateway.settings import RelayLimits
from serverless_triton.scheduler.gateway.statistics import Statistics
from serverless_triton.scheduler.gateway.tracing import Tracing
from serverless_triton.scheduler.gateway.upstream import LinkBroke, RequestFailed, Upstream, UpstreamCall, UpstreamError
from serverless_triton.scheduler.gateway.watchdog import Deadline, DeadlineExceeded, Watchdog, first_deadline
from serverless_triton.scheduler.identity import ANONYMOUS, Caller
from serverless_triton.scheduler.journal import Journal, Verdict
from serverless_triton.scheduler.log_lines import REQUEST_ID_LENGTH
from serverless_triton.scheduler.node_links import BROKEN_LINK
from serverless_triton.scheduler.receipts import Kind, Receipt, ReceiptBook

log = logging.getLogger(__name__)

# How long a server may take to end a call after its last response, before the call is cancelled.
_END_OF_CALL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """What all streams of a gateway share."""

    admission: Admission
    upstream: Upstream
    journal: Journal
    receipts: ReceiptBook
    metrics: GatewayMetrics
    statistics: Statistics
    limits: RelayLimits = field(default_factory=RelayLimits)
    spend: Callable[[Caller, int], None] = lambda caller, tokens: None  # of a stream that has ended
    tracing: Tracing = field(default_factory=Tracing)
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    _ending: set[asyncio.Task[None]] = field(default_factory=set, init=False, repr=False)

    def open(self, request: GenerationRequest, caller: Caller = ANONYMOUS) -> RelayedStream:
        """A stream with an id of its own. Nothing is sent until its responses are asked for, which must happen."""
        return RelayedStream(self, request, caller)

    def let_end(self, call: UpstreamCall) -> None:
        """Reads a call that has said everything to its end: cancelling it would race with the server's own."""
        task = asyncio.create_task(_drain(call))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Waits for calls that are ending."""
        await asyncio.gather(*self._ending)


async def _drain(call: UpstreamCall) -> None:
    over = UpstreamError("CANCELLED", "the stream is over")
    timer = asyncio.get_running_loop().call_later(_END_OF_CALL_S, call.sever, over)
    try:
        while await call.read() is not None:
            pass
    except UpstreamError as error:
        log.debug("finished_call_ended code=%s", error.code)
    finally:
        timer.cancel()
        call.sever(over)


class RelayedStream:
    """One stream of one client."""

    def __init__(self, relay: Relay, request: GenerationRequest, caller: Caller) -> None:
        self._relay = relay
        self._request = request
        self._caller = caller
        self._journal = relay.journal.open(request.model)
        self._composer = Composer(request, self._journal)
        self._figures = relay.metrics.stream(request.model)
        self._trace = relay.tracing.stream(request.model, self.request_id)
        self._avoid: set[ReplicaId] = set()
        self._deaths: list[str] = []
        self._opened_s = self._waiting_since_s = relay.clock()
        self._queue_s: float | None = None
        self._assigned: Assignment | None = None
        self._assigned_s, self._server = 0.0, ""
        self._receipt_due = True
        self._outcome = "cancelled"  # as long as nothing else has ended it
        self._untold: list[Receipt] = []

    @property
    def id(self) -> StreamId:
        return self._journal.stream

    @property
    def request_id(self) -> str:
        """What logs and traces call it: the whole id is a capability."""
        return self.id[:REQUEST_ID_LENGTH]

    async def responses(self) -> AsyncGenerator[pb.ModelInferResponse, None]:
        """The client's responses, the last with a final marker. Closing it cancels all. Raises SchedulerError."""
        relay, journal = self._relay, self._journal
        relay.metrics.requests.labels(journal.model).inc()
        relay.metrics.open_streams.inc()
        try:
            deadline = self._deadline()
            outlook = await self._outlook() if self._request.returns_queue_position else None
            if outlook is not None and not self._request.whole:
                yield self._composer.announce(outlook)
            while journal.finish_reason is None:
                assignment = await self._admit(deadline)
                try:
                    with self._call(assignment, deadline) as (call, watchdog):
                        while journal.finish_reason is None:
                            watchdog.reading()
                            response = self._take(assignment, await call.read())
                            watchdog.idle()
                            if response is not None and journal.finish_reason is None:
                                yield self._with_receipts(response)
                except UpstreamError as error:
                    self._survive(assignment, error)
            self._outcome = journal.finish_reason
            self._count(succeeded=True)
            assert response is not None
            if outlook is not None and self._request.whole:
                tell_outlook(response, outlook)
            yield self._with_receipts(response)
        except SchedulerError as error:
            self._outcome = error.code
            self._count(succeeded=False)
            raise
        finally:
            self._log_end()
            self._trace.end(outcome=self._outcome, output_tokens=len(journal.output_ids), attempts=journal.attempt + 1)
            relay.metrics.open_streams.dec()
            relay.journal.close(self.id)
            relay.spend(self._caller, journal.num_input_tokens + len(journal.output_ids))

    async def _outlook(self) -> Outlook:
        priority = self._request.priority
        return await self._relay.admission.outlook(self._journal.model, caller=self._caller, priority=priority)

    def _deadline(self) -> Deadline | None:
        return first_deadline(self._request.timeout_s, self._relay.limits.overall_timeout_s)

    def _by_wall_clock(self, deadline: Deadline | None) -> int | None:
        """In whole seconds since 1970, not before the deadline: Triton passes whole numbers on."""
        return None if deadline is None else math.ceil(self._relay.wall_clock() + deadline.left_s)

    async def _admit(self, deadline: Deadline | None) -> Assignment:
        patience_s = self._relay.limits.admission_timeout_s
        left_s = patience_s if deadline is None else deadline.left_s
        try:
            assignment = await self._relay.admission.admit(
                self.id,
                self._journal.model,
                timeout_s=min(patience_s, left_s),
                avoid=frozenset(self._avoid),
                caller=self._caller,
                priority=self._request.priority,
                version=self._request.asked_version,
            )
        except SchedulerError as error:
            if not self._deaths:
                raise
            if deadline is not None and left_s <= patience_s and isinstance(error, AdmissionTimeout):
                raise deadline.exceeded() from error
            raise self._lost(f", and there is no other place for it: {error}", error.retry_after_s) from error
        before, self._assigned = self._assigned, assignment
        if before is not None and self._journal.output_ids and not assignment.goes_on_from(before):
            self._relay.admission.finish(assignment)
            raise self._lost(", and the model was replaced by another since it began")
        self._assigned_s, self._server = self._relay.clock(), str(assignment.server)
        if self._queue_s is None:
            self._queue_s = self._assigned_s - self._opened_s
            self._figures.placed(self._queue_s)
        self._trace.event("placed", server=self._server)
        return assignment

    @contextmanager
    def _call(self, assignment: Assignment, deadline: Deadline | None) -> Iterator[tuple[UpstreamCall, Watchdog]]:
        place = HeldPlace(self._relay.admission, assignment)
        try:
            request = self._request.upstream(self.id, self._journal.resume_point(), self._by_wall_clock(deadline))
            request.model_version = assignment.version
            if self._trace.traceparent:
                request.parameters[TRACEPARENT].string_param = self._trace.traceparent
            call = self._relay.upstream.infer(assignment.grpc_address, request)
            limit = self._relay.limits.inactivity_timeout_s
            watchdog = Watchdog(call, assignment, inactivity_s=limit, deadline=deadline, give_back=place.give_back)
            said_all = False
            try:
                yield call, watchdog
            except RequestFailed:
                said_all = True
                raise
            finally:
                watchdog.stop()
                self._leave(call, said_all or self._journal.finish_reason is not None)
        finally:
            place.give_back()

    def _leave(self, call: UpstreamCall, said_all: bool) -> None:
        if said_all:
            self._relay.let_end(call)
        else:
            call.sever(UpstreamError("CANCELLED", "the gateway left the call"))

    def _take(self, assignment: Assignment, message: pb.ModelInferResponse | None) -> pb.ModelInferResponse | None:
        """Journals a message; returns what the client hears of it. Raises UpstreamError."""
        try:
            update = None if message is None else read_update(message)
        except MalformedUpdate as error:
            raise UpstreamError("INTERNAL", f"model '{self._journal.model}': {error}") from error
        if update is None:
            raise UpstreamError("UNAVAILABLE", "the replica ended the stream before the text was complete")
        if update.finish_reason == "cancelled":
            raise UpstreamError("CANCELLED", "the replica gave the stream up")
        if not self._accepts(update):
            return None
        if self._receipt_due and not update.empty:
            self._write_receipt(assignment)
        return self._composer.compose(update)

    def _accepts(self, update: TokenUpdate) -> bool:
        verdict = self._journal.accept(
            attempt=update.attempt,
            first_position=update.first_position,
            output_ids=update.output_ids,
            text=update.text.decode(errors="replace"),
        )
        if verdict is not Verdict.ACCEPTED:
            self._relay.metrics.dropped_messages.labels(self._journal.model).inc()
        if verdict is Verdict.GAP:
            raise UpstreamError("UNAVAILABLE", "the replica left tokens out")
        if verdict is Verdict.ACCEPTED:
            self._journal.learn(update.prompt_ids, update.num_input_tokens, update.finish_reason)
            self._figures.heard(len(update.output_ids), update.num_input_tokens, self._relay.clock())
        return verdict is Verdict.ACCEPTED

    def _survive(self, assignment: Assignment, error: UpstreamError) -> None:
        """Makes the stream ready for its next attempt. Raises what the client must hear instead, if anything."""
        if isinstance(error, DeadlineExceeded):
            raise error
        if not error.breaks_replica:
            raise UpstreamError(error.code, self._in_clients_words(str(error))) from error
        self._deaths.append(BROKEN_LINK if isinstance(error, LinkBroke) else str(error))
        self._avoid.add(assignment.replica)
        log.warning(
            "stream_lost_replica request_id=%s tenant=%s model=%s server=%s attempt=%d reason=%r",
            self.request_id,
            self._caller.tenant,
            assignment.model,
            assignment.server,
            self._journal.attempt,
            str(error),
        )
        self._trace.event("replica_lost", server=self._server, reason=str(error))
        if len(self._deaths) >= self._relay.limits.max_deaths:
            raise self._lost() from error
        self._journal.next_attempt()
        self._waiting_since_s = self._relay.clock()
        self._receipt_due = True
        self._relay.metrics.resumed_streams.labels(assignment.model).inc()

    def _lost(self, more: str = "", retry_after_s: float | None = None) -> StreamLost:
        model, count = self._journal.model, len(self._deaths)
        broke = "a replica" if count == 1 else f"{count} replicas"
        words = f"model '{model}': {broke} broke under this stream ({self._deaths[-1]}){more}"
        return StreamLost(words, retry_after_s=retry_after_s)

    def _in_clients_words(self, message: str) -> str:
        return message.replace(f"[request id: {self.id}]", f"[request id: {self._request.client_id or '<id_unknown>'}]")

    def _write_receipt(self, assignment: Assignment) -> None:
        self._receipt_due = False
        start, now_s = assignment.start, self._relay.clock()
        kind: Kind = "resumed" if self._journal.attempt else "warm" if start is None else start.state
        own = (
            Span(name=ADMISSION_SPAN, start_s=self._waiting_since_s, end_s=self._assigned_s),
            Span(name="first_token", start_s=self._assigned_s, end_s=now_s),
        )
        receipt = Receipt(
            stream=self.id,
            model=assignment.model,
            server=assignment.server,
            kind=kind,
            tier=start.tier if start else None,
            bytes=start.bytes if start else 0,
            predicted_s=start.predicted_s if start else None,
            start_s=self._waiting_since_s,
            first_token_s=now_s,
            spans=(*own, *(start.spans if start else ())),
            comparison=start.comparison if start else None,
            exactness=assignment.exactness,
        )
        self._relay.receipts.add(receipt, self._caller.tenant)
        if self._request.returns_receipt:
            self._untold.append(receipt)
        self._trace.event("first_token", kind=kind)
        self._relay.metrics.first_token_seconds.labels(assignment.model, kind).observe(receipt.actual_s)

    def _log_end(self) -> None:
        log.info(
            "stream_ended request_id=%s tenant=%s model=%s server=%s outcome=%s attempts=%d prompt_tokens=%d tokens=%d "
            "queue_s=%.6f total_s=%.6f",
            self.request_id,
            self._caller.tenant,
            self._journal.model,
            self._server,
            self._outcome,
            self._journal.attempt + 1,
            self._journal.num_input_tokens,
            len(self._journal.output_ids),
            self._queue_s or 0.0,
            self._relay.clock() - self._opened_s,
        )

    def _with_receipts(self, response: pb.ModelInferResponse) -> pb.ModelInferResponse:
        """Each is told with the first response after its start, if the client asked."""
        if self._untold:
            tell_receipts(response, self._untold)
            self._untold.clear()
        return response

    def _count(self, *, succeeded: bool) -> None:
        relay, request = self._relay, self._request
        total_s = relay.clock() - self._opened_s
        now_ms = int(relay.wall_clock() * 1000)
        if succeeded:
            queue_s = self._queue_s or 0.0
            relay.statistics.succeeded(request.model, request.version, total_s=total_s, queue_s=queue_s, now_ms=now_ms)
        else:
            relay.statistics.failed(request.model, request.version, total_s=total_s, now_ms=now_ms)
