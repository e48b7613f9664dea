"""Requests for other backends' models: to the server where the model is loaded and back, tensors as they came.

Nothing of them is journalled, so nothing is repeated: what fails after it was sent fails for its client, in its
server's words. Whether a request is right is for its model's Triton to say, but for sizes that would harm it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.admission import ADMISSION_SPAN, Assignment, HeldPlace, Span, StreamId
from serverless_triton.scheduler.catalogue import ModelEntry
from serverless_triton.scheduler.errors import InvalidRequest, SchedulerError
from serverless_triton.scheduler.gateway.notices import tell_receipts
from serverless_triton.scheduler.gateway.relay import Relay
from serverless_triton.scheduler.gateway.request import RETURN_RECEIPT
from serverless_triton.scheduler.gateway.sequences import Sequences, SequenceStep, Turn, read_step
from serverless_triton.scheduler.gateway.shared_memory import no_region
from serverless_triton.scheduler.gateway.tensor_sizes import check_sizes
from serverless_triton.scheduler.gateway.terms import Terms
from serverless_triton.scheduler.gateway.upstream import LinkBroke, RequestRefused, UpstreamCall, UpstreamError
from serverless_triton.scheduler.gateway.watchdog import Deadline, Watchdog, first_deadline
from serverless_triton.scheduler.identity import Caller
from serverless_triton.scheduler.log_lines import REQUEST_ID_LENGTH
from serverless_triton.scheduler.receipts import Receipt

log = logging.getLogger(__name__)

# How Triton's Python backend says that the model's process has ended. It starts no other one.
_PROCESS_ENDED = "is not healthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedRequest:
    """A request as its server gets it, and what the gateway needs to know of it. Never log its tensors."""

    message: pb.ModelInferRequest = field(repr=False)
    model: str
    version: str  # for statistics; the message asks for what its client asked for
    unary: bool
    timeout_s: float | None
    priority: int = 0
    returns_receipt: bool = False
    sequence: SequenceStep | None = None


def read_passed(request: pb.ModelInferRequest, entry: ModelEntry, terms: Terms, *, unary: bool) -> PassedRequest:
    """Raises InvalidRequest, UnknownModel."""
    version = entry.version(request.model_version)
    _refuse_regions(request)
    check_sizes(request, entry)
    message = pb.ModelInferRequest()
    message.CopyFrom(request)
    wants_receipt = message.parameters.pop(RETURN_RECEIPT, None)
    bounds = [bound for bound in (terms.timeout_s, _timeout_s(request)) if bound is not None]
    return PassedRequest(
        message=message,
        model=entry.name,
        version=version,
        unary=unary,
        timeout_s=min(bounds, default=None),
        priority=_number(request, "priority"),
        returns_receipt=terms.returns_receipt or (wants_receipt is not None and wants_receipt.bool_param),
        sequence=read_step(request, entry),
    )


def _refuse_regions(request: pb.ModelInferRequest) -> None:
    """A client's memory is not its server's."""
    for tensor in (*request.inputs, *request.outputs):
        if any(name.startswith("shared_memory") for name in tensor.parameters):
            raise no_region(tensor.parameters["shared_memory_region"].string_param)


def _timeout_s(request: pb.ModelInferRequest) -> float | None:
    microseconds = _number(request, "timeout")
    return microseconds / 1e6 if microseconds > 0 else None


def _number(request: pb.ModelInferRequest, name: str) -> int:
    parameter = request.parameters.get(name)
    if parameter is None:
        return 0
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidRequest(f"invalid value type for '{name}' parameter, expected int64_param or uint64_param.")
    return int(getattr(parameter, kind))


class PassedStream:
    """One request of one client, and its responses."""

    def __init__(self, relay: Relay, sequences: Sequences, request: PassedRequest, caller: Caller) -> None:
        self.id = StreamId(secrets.token_hex(16))
        self._relay = relay
        self._sequences = sequences
        self._request = request
        self._caller = caller
        self._opened_s = self._placed_s = relay.clock()
        self._server = ""
        self._count = 0  # responses so far
        self._outcome = "cancelled"  # as long as nothing else has ended it

    async def responses(self) -> AsyncGenerator[pb.ModelInferResponse, None]:
        """As the server sends them. Closing it cancels all. Raises SchedulerError."""
        relay, request = self._relay, self._request
        relay.metrics.requests.labels(request.model).inc()
        relay.metrics.open_streams.inc()
        try:
            deadline = first_deadline(request.timeout_s, relay.limits.overall_timeout_s)
            async with self._turn(deadline) as turn, aclosing(self._ask(turn, deadline)) as responses:
                async for response in responses:
                    yield self._heard(turn.assignment, response)
            self._end("success")
        except SchedulerError as error:
            self._end(error.code)
            raise
        finally:
            relay.metrics.open_streams.dec()
            self._log_end()

    @asynccontextmanager
    async def _turn(self, deadline: Deadline | None) -> AsyncIterator[Turn]:
        """A place of its own, or its sequence's."""
        step, tenant = self._request.sequence, self._caller.tenant
        places: AbstractAsyncContextManager[Turn]
        if step is None:
            places = self._own_turn(deadline)
        else:
            places = self._sequences.turn(step, tenant, self._patience_s(deadline), lambda: self._admit(deadline))
        async with places as turn:
            self._placed_s, self._server = self._relay.clock(), str(turn.assignment.server)
            self._relay.metrics.stream(self._request.model).placed(self._placed_s - self._opened_s)
            yield turn

    @asynccontextmanager
    async def _own_turn(self, deadline: Deadline | None) -> AsyncIterator[Turn]:
        assignment = await self._admit(deadline)
        place = HeldPlace(self._relay.admission, assignment)
        turn = Turn(assignment, give_up=place.give_back)
        try:
            yield turn
        finally:
            place.give_back(broken=turn.broken)

    async def _admit(self, deadline: Deadline | None) -> Assignment:
        return await self._relay.admission.admit(
            self.id,
            self._request.model,
            timeout_s=self._patience_s(deadline),
            caller=self._caller,
            priority=self._request.priority,
        )

    def _patience_s(self, deadline: Deadline | None) -> float:
        patience_s = self._relay.limits.admission_timeout_s
        return patience_s if deadline is None else min(patience_s, deadline.left_s)

    async def _ask(self, turn: Turn, deadline: Deadline | None) -> AsyncGenerator[pb.ModelInferResponse, None]:
        """The one attempt that there is."""
        said_all = False
        call = self._call(turn.assignment)
        watchdog = Watchdog(call, turn.assignment, inactivity_s=None, deadline=deadline, give_back=turn.give_up)
        try:
            while (response := await call.read()) is not None:
                yield response
            said_all = True
        except LinkBroke as error:
            names = (self.id[:REQUEST_ID_LENGTH], self._request.model, self._server)
            log.warning("request_link_broke request_id=%s model=%s server=%s reason=%r", *names, str(error))
            raise error.for_clients() from error
        except UpstreamError as error:
            turn.broken, said_all = _PROCESS_ENDED in str(error), isinstance(error, RequestRefused)
            raise UpstreamError("INTERNAL", str(error)) if said_all else error from error
        finally:
            watchdog.stop()
            self._leave(call, said_all)

    def _call(self, assignment: Assignment) -> UpstreamCall:
        upstream = self._relay.upstream
        send = upstream.infer_once if self._request.unary else upstream.infer
        return send(assignment.grpc_address, self._request.message)

    def _leave(self, call: UpstreamCall, said_all: bool) -> None:
        """Cancelling a call that its server is ending would race with it."""
        if said_all:
            self._relay.let_end(call)
        else:
            call.sever(UpstreamError("CANCELLED", "the gateway left the call"))

    def _heard(self, assignment: Assignment, response: pb.ModelInferResponse) -> pb.ModelInferResponse:
        self._count += 1
        if self._count == 1:
            receipt = self._receipt(assignment)
            self._relay.receipts.add(receipt, self._caller.tenant)
            if self._request.returns_receipt:
                tell_receipts(response, [receipt])
        return response

    def _receipt(self, assignment: Assignment) -> Receipt:
        """Its first response stands for the first token."""
        start, now_s = assignment.start, self._relay.clock()
        own = (
            Span(name=ADMISSION_SPAN, start_s=self._opened_s, end_s=self._placed_s),
            Span(name="first_response", start_s=self._placed_s, end_s=now_s),
        )
        return Receipt(
            stream=self.id,
            model=assignment.model,
            server=assignment.server,
            kind="warm" if start is None else start.state,
            tier=None if start is None else start.tier,
            bytes=0,
            predicted_s=None if start is None else start.predicted_s,
            start_s=self._opened_s,
            first_token_s=now_s,
            spans=(*own, *(() if start is None else start.spans)),
            comparison=None if start is None else start.comparison,
        )

    def _end(self, outcome: str) -> None:
        self._outcome = outcome
        relay, request = self._relay, self._request
        total_s, now_ms = relay.clock() - self._opened_s, int(relay.wall_clock() * 1000)
        if outcome == "success":
            queue_s = self._placed_s - self._opened_s
            relay.statistics.succeeded(request.model, request.version, total_s=total_s, queue_s=queue_s, now_ms=now_ms)
        else:
            relay.statistics.failed(request.model, request.version, total_s=total_s, now_ms=now_ms)

    def _log_end(self) -> None:
        log.info(
            "request_passed request_id=%s model=%s server=%s outcome=%s responses=%d queue_s=%.6f total_s=%.6f",
            self.id[:REQUEST_ID_LENGTH],
            self._request.model,
            self._server,
            self._outcome,
            self._count,
            self._placed_s - self._opened_s,
            self._relay.clock() - self._opened_s,
        )
