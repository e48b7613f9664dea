"""All of an engine but its tokens: requests, rounds and reservations come and go, each with its one terminal event."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

from serverless_triton.backend.engines.generation import Generation
from serverless_triton.backend.engines.intake import Intake
from serverless_triton.backend.engines.protocol import (
    POSITION_S,
    CatchUpRequest,
    CaughtUpEvent,
    EngineEvent,
    EngineStats,
    Exactness,
    GenerationRequest,
    InvalidRequest,
    PositionEvent,
    Reservation,
    TokenEvent,
    UnknownRequest,
    is_terminal,
)
from serverless_triton.backend.engines.reservations import Reservations, Reserved, asked
from serverless_triton.backend.engines.schedule import Schedule, Stream, Work
from serverless_triton.backend.token_state import TokenState


class ScheduledEngine(ABC):
    """Implements protocol.Engine but for `advance` and `forget`, which compute and clear what the schedule says."""

    def __init__(self, intake: Intake, schedule: Schedule, clock: Callable[[], float] = time.monotonic) -> None:
        self._intake = intake
        self._schedule = schedule
        self._reservations = Reservations()
        self._clock = clock
        self._streams: dict[int, Stream] = {}  # by the number of each request and round that has not ended
        self._ended: list[EngineEvent] = []  # what the next step will tell
        self._steps = self._generated_tokens = self._prefilled_tokens = self._last_batch_tokens = 0

    @abstractmethod
    def advance(self, works: Sequence[Work]) -> list[EngineEvent]:
        """Compute the KV of all works, and for each that draws a token: its event, or its failure."""

    @abstractmethod
    def forget(self, slots: Sequence[int]) -> None:
        """Nobody has these slots any more, and the next one must find nothing in them."""

    @property
    @abstractmethod
    def exactness(self) -> Exactness: ...

    # What is asked of it

    @property
    def has_work(self) -> bool:
        return bool(self._ended) or self._schedule.has_work

    def submit(self, request: GenerationRequest) -> None:
        self._check_new(request.request)
        reserved = self._claimed(request)
        generation = _continued(self._intake, reserved, request) or self._intake.begin(request)
        if request.reservation is not None:
            self._drop_older(request.reservation)
            self._reservations.use(request.reservation)
        if reserved is None:
            stream = Stream(generation=generation, told_s=self._clock())
        else:
            stream = reserved.stream
            self._end_rounds(stream)
            _take_over(stream, generation)
        if generation.finish_reason is not None:  # resumed at its end
            self._ended.append(generation.event(len(generation.ids), ""))
            self._schedule.remove(stream)
        else:
            self._streams[request.request] = stream
            self._schedule.add(stream)

    def catch_up(self, request: CatchUpRequest) -> None:
        self._check_new(request.request)
        self._reservations.check_unused(request.reservation)
        self._reservations.check_newest(request.reservation)
        reserved = self._reservations.get(request.reservation)
        if reserved is None:
            reserved = self._reserve(request)
        else:
            self._extend(reserved, request)
        reserved.round_s = self._clock()
        stream = reserved.stream
        stream.rounds.append(request.request)
        self._streams[request.request] = stream
        self._schedule.add(stream)
        if stream.held_tokens == stream.total_tokens:
            self._end_rounds(stream)

    def cancel(self, request: int) -> None:
        stream = self._streams.get(request)
        if stream is None:
            return
        reserved = self._reservations.of(stream) if stream.reserved else None
        if reserved is not None:
            self._drop(reserved)
            return
        stream.generation.finish_reason = "cancelled"
        self._end_unseen(stream)

    def freeze(self, request: int) -> TokenState:
        stream = self._streams.get(request)
        if stream is None or stream.reserved:
            raise UnknownRequest(f"no generation {request} is waiting or running")
        state = stream.generation.freeze(self.exactness.contract)
        self._end_unseen(stream)
        return state

    def release(self, reservation: Reservation) -> None:
        reserved = self._reservations.get(reservation)
        if reserved is not None:
            self._drop(reserved)

    def expire(self, now_s: float) -> None:
        for reserved in self._reservations.expired(now_s):
            self._drop(reserved)

    def step(self) -> list[EngineEvent]:
        now_s = self._clock()
        events, self._ended = self._ended, []
        works = self._schedule.plan()
        self.forget(self._schedule.budget.take_left())
        if works:
            events += self.advance(works)
            self._count(works)
        self._schedule.done(works)
        self._end_rounds_of(works)
        events += self._ended
        self._ended = []
        self._retire(events)
        events += self._positions(now_s)
        return sorted(events, key=lambda event: event.request)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=sum(not stream.reserved for stream in self._schedule.holding),
            waiting=len(self._schedule.waiting),
            reserved=len(self._reservations),
            kv_tokens_used=self._schedule.budget.used_tokens,
            kv_tokens_total=self._schedule.budget.total_tokens,
            steps=self._steps,
            generated_tokens=self._generated_tokens,
            prefilled_tokens=self._prefilled_tokens,
            preemptions=self._schedule.preemptions,
            last_batch_tokens=self._last_batch_tokens,
        )

    def close(self) -> None:
        self._streams.clear()
        self._ended.clear()
        self._reservations = Reservations()
        self._schedule.clear()

    # Coming

    def _check_new(self, request: int) -> None:
        if request in self._streams or any(event.request == request for event in self._ended):
            raise InvalidRequest(f"request {request} is running already; give each request a number of its own")

    def _claimed(self, request: GenerationRequest) -> Reserved | None:
        """What is held for it. Raises InvalidRequest."""
        if request.reservation is None:
            return None
        self._reservations.check_unused(request.reservation)
        return self._reservations.get(request.reservation)

    def _drop_older(self, reservation: Reservation) -> None:
        """What an earlier attempt left: its stream is here now, or moves here anew."""
        older = self._reservations.older(reservation)
        if older is not None:
            self._drop(older)

    def _reserve(self, request: CatchUpRequest) -> Reserved:
        if request.start_position:
            raise InvalidRequest(f"nothing is held for start_position {request.start_position}; begin again at 0")
        generation = self._intake.begin(request)
        self._drop_older(request.reservation)
        now_s = self._clock()
        stream = Stream(generation=generation, told_s=now_s, reserved=True)
        reserved = Reserved(key=request.reservation, stream=stream, asked=asked(request), round_s=now_s)
        self._reservations.add(reserved)
        return reserved

    def _extend(self, reserved: Reserved, request: CatchUpRequest) -> None:
        if asked(request) != reserved.asked:
            raise InvalidRequest("prompt and sampling_parameters differ from those of the rounds before")
        generation, start, ids = reserved.stream.generation, request.start_position, list(request.resume_token_ids)
        self._intake.check_resumed(ids)
        held = len(generation.ids)
        if start > held and generation.finish_reason is None:
            raise InvalidRequest(f"start_position is {start}, and tokens are held up to {held}; send those between too")
        if generation.ids[start : start + len(ids)] != ids[: max(held - start, 0)]:
            raise InvalidRequest(f"resume_token_ids differ from those held, between positions {start} and {held}")
        generation.replay(ids[max(held - start, 0) :])

    # Going

    def _end_unseen(self, stream: Stream) -> None:
        """A generation ends without a token; the next step tells."""
        generation = stream.generation
        del self._streams[generation.request]
        self._ended.append(generation.event(len(generation.ids), ""))
        self._schedule.remove(stream)

    def _drop(self, reserved: Reserved) -> None:
        generation = reserved.stream.generation
        self._reservations.drop(reserved)
        for request in reserved.stream.rounds:
            del self._streams[request]
            self._ended.append(
                TokenEvent(
                    request=request,
                    first_position=len(generation.ids),
                    output_ids=(),
                    text="",
                    num_input_tokens=len(generation.prompt_ids),
                    finish_reason="cancelled",
                )
            )
        reserved.stream.rounds = []
        self._schedule.remove(reserved.stream)
        self.forget(self._schedule.budget.take_left())  # there may be no step for a long time

    def _end_rounds_of(self, works: Iterable[Work]) -> None:
        for stream in (work.stream for work in works):
            if stream.rounds and stream.held_tokens == stream.total_tokens:
                self._end_rounds(stream)

    def _end_rounds(self, stream: Stream) -> None:
        for request in stream.rounds:
            del self._streams[request]
            self._ended.append(CaughtUpEvent(request=request, held_tokens=stream.held_tokens))
        stream.rounds = []
        reserved = self._reservations.of(stream)
        if reserved is not None:
            reserved.round_s = self._clock()

    def _retire(self, events: Iterable[EngineEvent]) -> None:
        for event in events:
            if is_terminal(event):
                stream = self._streams.pop(event.request, None)
                if stream is not None:
                    self._schedule.remove(stream)
        self.forget(self._schedule.budget.take_left())

    # Telling

    def _count(self, works: Sequence[Work]) -> None:
        self._last_batch_tokens = sum(work.tokens for work in works)
        self._steps += 1
        self._generated_tokens += sum(work.draws for work in works)
        self._prefilled_tokens += sum(work.tokens for work in works if not work.decodes)

    def _positions(self, now_s: float) -> list[EngineEvent]:
        """Signs of life of those who have had none for POSITION_S."""
        events: list[EngineEvent] = []
        for stream in (*self._schedule.waiting, *self._schedule.holding):
            if stream.idle or now_s - stream.told_s < POSITION_S:
                continue
            stream.told_s = now_s
            if stream.total_tokens - stream.held_tokens > 1:
                events += _position(stream)
        return events


def _position(stream: Stream) -> Iterable[PositionEvent]:
    return (
        PositionEvent(
            request=request,
            state="queued" if stream.slot is None else "prefilling",
            held_tokens=stream.held_tokens,
            total_tokens=stream.total_tokens,
        )
        for request in stream.requests
    )


def _continued(intake: Intake, reserved: Reserved | None, request: GenerationRequest) -> Generation | None:
    """The reserved generation, gone on to where the request is; None where it went another way."""
    if reserved is None or reserved.asked != asked(request):
        return None
    generation, ids = reserved.stream.generation, list(request.resume_token_ids)
    if generation.ids != ids[: len(generation.ids)]:
        return None
    intake.check_resumed(ids)
    generation.replay(ids[len(generation.ids) :])
    generation.request, generation.deadline_unix_s = request.request, request.deadline_unix_s
    return generation


def _take_over(stream: Stream, generation: Generation) -> None:
    """A reserved stream becomes the generation's. What both begin with stays held, less the token that is fed next."""
    before = stream.ids(0, stream.held_tokens)
    stream.generation, stream.reserved = generation, False
    after = stream.ids(0, stream.total_tokens - 1)
    same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), None)
    stream.held_tokens = min(len(before), len(after)) if same is None else same
