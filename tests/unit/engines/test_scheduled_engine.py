"""Rounds, reservations, freezing, heartbeats and figures: what every engine of ours does alike, with the fake one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from serverless_triton.backend.engines.fake import FakeEngine, fake_token
from serverless_triton.backend.engines.protocol import (
    CatchUpRequest,
    CaughtUpEvent,
    EngineEvent,
    GenerationRequest,
    InvalidRequest,
    PositionEvent,
    Reservation,
    TokenEvent,
    UnknownRequest,
)
from serverless_triton.backend.token_state import encode_token_state, parse_token_state

PROMPT = b"hello"
KEY = Reservation(stream="s", attempt=2)
TOKENS = tuple(fake_token(PROMPT, position) for position in range(40))


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def build(clock: Clock | None = None, **limits: Any) -> FakeEngine:
    given = {"max_sequence_tokens": 256, "max_streams": 4, **limits}
    return FakeEngine(clock=clock or Clock(), **given)


def ask(request: int, resume: int = 0, reservation: Reservation | None = None, **sampling: Any) -> GenerationRequest:
    sampling = {"max_tokens": 40, **sampling}
    return GenerationRequest(
        request=request,
        input_ids=PROMPT,
        resume_token_ids=TOKENS[:resume],
        sampling_parameters=sampling,
        reservation=reservation,
    )


def round_(request: int, first: int, last: int, key: Reservation = KEY, prompt: bytes = PROMPT) -> CatchUpRequest:
    return CatchUpRequest(
        request=request,
        reservation=key,
        input_ids=prompt,
        resume_token_ids=TOKENS[first:last],
        sampling_parameters={"max_tokens": 40},
        start_position=first,
    )


def run(engine: FakeEngine) -> list[EngineEvent]:
    events = []
    while engine.has_work:
        events += engine.step()
    return events


def prefilled(engine: FakeEngine) -> int:
    return engine.stats().prefilled_tokens


def test_a_round_computes_prompt_and_tokens_and_says_what_is_held() -> None:
    engine = build()
    engine.catch_up(round_(1, 0, 10))
    assert run(engine) == [CaughtUpEvent(request=1, held_tokens=15)]
    assert (prefilled(engine), engine.stats().reserved) == (15, 1)


def test_further_rounds_add_what_is_new_and_may_overlap_or_repeat() -> None:
    engine = build()
    for request, (first, last), held in ((1, (0, 10), 15), (2, (10, 14), 19), (3, (8, 16), 21), (4, (0, 12), 21)):
        engine.catch_up(round_(request, first, last))
        assert run(engine) == [CaughtUpEvent(request=request, held_tokens=held)]
    assert prefilled(engine) == 21


def test_rounds_that_meet_end_together() -> None:
    engine = build()
    engine.catch_up(round_(1, 0, 10))
    engine.catch_up(round_(2, 10, 12))
    assert run(engine) == [CaughtUpEvent(request=n, held_tokens=17) for n in (1, 2)]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (round_(2, 11, 14), "start_position is 11, and tokens are held up to 10"),
        (round_(2, 0, 3, prompt=b"other"), "prompt and sampling_parameters differ"),
        (round_(2, 0, 3, key=Reservation(stream="s", attempt=1)), "attempt 1 is over; attempt 2 is being caught up"),
        (round_(2, 3, 5, key=Reservation(stream="t", attempt=1)), "nothing is held for start_position 3"),
        (
            CatchUpRequest(
                request=2,
                reservation=KEY,
                input_ids=PROMPT,
                resume_token_ids=(1, 2),
                sampling_parameters={"max_tokens": 40},
            ),
            "resume_token_ids differ from those held, between positions 0 and 10",
        ),
        (round_(1, 0, 3), None),
    ],
)
def test_a_round_that_does_not_continue_is_refused(second: CatchUpRequest, message: str | None) -> None:
    engine = build()
    engine.catch_up(round_(1, 0, 10))
    if message is not None:
        run(engine)
    with pytest.raises(InvalidRequest, match=message or "request 1 is running already"):
        engine.catch_up(second)
    assert engine.stats().reserved == 1


def test_activation_computes_only_what_is_new_and_goes_on() -> None:
    engine = build()
    engine.catch_up(round_(1, 0, 20))
    run(engine)
    before = prefilled(engine)
    engine.submit(ask(2, resume=24, reservation=KEY))
    events = run(engine)
    assert prefilled(engine) - before == 4
    assert tuple(token for event in events for token in event.output_ids) == TOKENS[24:]
    assert events[0].first_position == 24
    assert engine.stats().reserved == 0


@pytest.mark.parametrize("resume", [0, 3, 20])
def test_activation_of_a_stream_that_went_another_way_keeps_what_both_begin_with(resume: int) -> None:
    engine = build()
    engine.catch_up(round_(1, 0, 20))
    run(engine)
    before = prefilled(engine)
    engine.submit(ask(2, resume=resume, reservation=KEY, temperature=1.0, seed=4))
    assert tuple(t for event in run(engine) for t in event.output_ids) == TOKENS[resume:]
    assert prefilled(engine) == before


def test_activation_works_once() -> None:
    engine = build()
    engine.catch_up(round_(1, 0, 20))
    run(engine)
    engine.submit(ask(2, resume=20, reservation=KEY))
    with pytest.raises(InvalidRequest, match="attempt 2 was activated already"):
        engine.submit(ask(3, resume=20, reservation=KEY))
    with pytest.raises(InvalidRequest, match="attempt 2 was activated already"):
        engine.catch_up(round_(3, 0, 20))


def test_activation_during_a_round_ends_the_round_with_what_is_held() -> None:
    engine = build(step_tokens=10)
    engine.catch_up(round_(1, 0, 20))
    engine.step()
    engine.submit(ask(2, resume=20, reservation=KEY))
    events = run(engine)
    assert events[0] == CaughtUpEvent(request=1, held_tokens=10)
    assert tuple(t for event in events[1:] for t in event.output_ids) == TOKENS[20:]


def test_an_unknown_reservation_costs_only_time() -> None:
    engine = build()
    engine.submit(ask(1, resume=20, reservation=KEY))
    assert tuple(t for event in run(engine) for t in event.output_ids) == TOKENS[20:]
    assert prefilled(engine) == 25


def test_a_newer_attempt_replaces_an_older_ones_reservation() -> None:
    engine = build()
    engine.catch_up(round_(1, 0, 20))
    engine.catch_up(round_(2, 0, 5, key=Reservation(stream="s", attempt=3)))
    events = run(engine)
    assert [(e.request, getattr(e, "finish_reason", None)) for e in events] == [(1, "cancelled"), (2, None)]
    assert (engine.stats().reserved, engine.stats().kv_tokens_used) == (1, 64)


def test_a_newer_attempt_that_is_refused_leaves_an_older_ones_reservation() -> None:
    engine = build()
    engine.catch_up(round_(1, 0, 20))
    run(engine)
    with pytest.raises(InvalidRequest, match="max_tokens"):
        engine.submit(ask(2, resume=20, reservation=Reservation(stream="s", attempt=3), max_tokens=0))
    assert (engine.stats().reserved, engine.has_work) == (1, False)
    engine.submit(ask(3, resume=20, reservation=KEY))
    run(engine)
    assert prefilled(engine) == 25


def test_a_reservation_expires_after_ten_seconds_without_a_round() -> None:
    clock = Clock()
    engine = build(clock)
    engine.catch_up(round_(1, 0, 10))
    run(engine)
    clock.now_s += 9
    engine.catch_up(round_(2, 10, 11))
    run(engine)
    clock.now_s += 9
    engine.expire(clock.now_s)
    assert engine.stats().kv_tokens_used == 64
    clock.now_s += 1
    engine.expire(clock.now_s)
    assert (engine.stats().reserved, engine.stats().kv_tokens_used, engine.has_work) == (0, 0, False)


def test_releasing_and_cancelling_drop_a_reservation_and_end_its_rounds() -> None:
    engine = build()
    engine.catch_up(round_(1, 0, 10))
    engine.release(KEY)
    engine.catch_up(round_(2, 0, 10))
    engine.cancel(2)
    events = run(engine)
    assert [(e.request, e.finish_reason) for e in events] == [(1, "cancelled"), (2, "cancelled")]
    assert (engine.stats().reserved, engine.stats().kv_tokens_used) == (0, 0)


def test_a_frozen_generation_ends_and_its_state_goes_on_elsewhere() -> None:
    engine = build()
    engine.submit(ask(1, stop=bytes(TOKENS[30:32]).decode()))
    told = [engine.step() for _ in range(12)]
    frozen = engine.freeze(1)
    assert frozen.output_ids == TOKENS[:12]
    assert parse_token_state(encode_token_state(frozen)) == frozen
    assert frozen.emitted_length == sum(len(events[0].text) for events in told)
    with pytest.raises(UnknownRequest):
        engine.freeze(1)
    assert [(e.finish_reason, e.output_ids) for e in engine.step()] == [("frozen", ())]
    assert not engine.has_work
    elsewhere = build()
    elsewhere.submit(
        GenerationRequest(
            request=9,
            input_ids=frozen.prompt_ids,
            resume_token_ids=frozen.output_ids,
            sampling_parameters=frozen.resume_parameters,
        )
    )
    events = run(elsewhere)
    whole = build()
    whole.submit(ask(1, stop=bytes(TOKENS[30:32]).decode()))
    expected = run(whole)
    assert [e.output_ids for e in events] == [e.output_ids for e in expected[12:]]
    assert [e.text for e in events] == [e.text for e in expected[12:]]


def test_a_frozen_request_keeps_the_seed_that_was_drawn_for_it() -> None:
    engine = build()
    engine.submit(ask(1, temperature=1.0))
    assert isinstance(engine.freeze(1).seed, int)


@pytest.mark.parametrize("caught_up", [False, True])
def test_a_frozen_state_has_the_deadline_that_its_request_had(caught_up: bool) -> None:
    engine = build()
    if caught_up:
        engine.catch_up(round_(1, 0, 20))
        run(engine)
    engine.submit(replace(ask(2, resume=20, reservation=KEY), deadline_unix_s=1_800_000_000))
    assert engine.freeze(2).deadline_unix_s == 1_800_000_000


def test_only_what_is_a_generation_can_be_frozen() -> None:
    engine = build()
    engine.catch_up(round_(1, 0, 10))
    for request in (1, 2):
        with pytest.raises(UnknownRequest, match=f"no generation {request} is waiting or running"):
            engine.freeze(request)


def test_who_waits_or_prefills_tells_its_position_once_a_second() -> None:
    clock = Clock()
    engine = build(clock, max_streams=1, step_tokens=2)
    engine.submit(ask(1))
    engine.submit(ask(2))
    assert engine.step() == []
    clock.now_s += 1.0
    assert engine.step() == [PositionEvent(request=2, state="queued", held_tokens=0, total_tokens=5)]
    clock.now_s += 0.9
    assert all(isinstance(event, TokenEvent) for event in engine.step())
    clock.now_s += 0.1
    assert [type(event) for event in engine.step()] == [TokenEvent, PositionEvent]


def test_a_long_prompt_tells_how_far_it_is() -> None:
    clock = Clock()
    engine = build(clock, step_tokens=2)
    engine.submit(ask(1, resume=10))
    engine.catch_up(round_(2, 0, 10))
    clock.now_s += 1.0
    assert engine.step() == [
        PositionEvent(request=1, state="prefilling", held_tokens=2, total_tokens=15),
        PositionEvent(request=2, state="prefilling", held_tokens=0, total_tokens=15),
    ]


def test_a_stream_that_gives_up_its_memory_goes_on_unnoticed() -> None:
    engine = build(max_sequence_tokens=128, kv_tokens=192, max_streams=3)
    prompts = [bytes([65 + i]) * 50 for i in range(3)]
    for i, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(request=i, input_ids=prompt, sampling_parameters={"max_tokens": 60}))
    events = run(engine)
    assert engine.stats().preemptions > 0
    for i, prompt in enumerate(prompts):
        mine = [event for event in events if event.request == i]
        assert [t for event in mine for t in event.output_ids] == [fake_token(prompt, p) for p in range(60)]
        assert [event.first_position for event in mine] == list(range(60))
        assert sum(event.prompt_ids is not None for event in mine) == 1


def test_stats_count_what_runs_and_what_was_done() -> None:
    engine = build(max_streams=1)
    engine.submit(ask(1, max_tokens=3))
    engine.submit(ask(2, max_tokens=3))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_tokens_used, stats.kv_tokens_total) == (1, 1, 64, 256)
    assert (stats.steps, stats.generated_tokens, stats.prefilled_tokens, stats.last_batch_tokens) == (1, 1, 5, 5)
    run(engine)
    stats = engine.stats()
    assert (stats.running, stats.generated_tokens, stats.prefilled_tokens, stats.kv_tokens_used) == (0, 6, 10, 0)


def test_cancelled_memory_is_free_at_the_next_step() -> None:
    engine = build(max_streams=1)
    engine.submit(ask(1))
    engine.submit(ask(2))
    engine.step()
    engine.cancel(1)
    assert [(e.request, e.finish_reason) for e in engine.step()] == [(1, "cancelled"), (2, None)]
