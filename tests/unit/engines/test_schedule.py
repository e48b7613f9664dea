"""What each step computes, who waits, and who gives up memory: by hand, without any engine."""

from __future__ import annotations

import random

import pytest

from serverless_triton.backend.engines.generation import Generation
from serverless_triton.backend.engines.kv_budget import KVBudget
from serverless_triton.backend.engines.sampling_parameters import SamplingParameters
from serverless_triton.backend.engines.schedule import Schedule, Stream


def stream(number: int, prompt_tokens: int, *, reserved: bool = False) -> Stream:
    generation = Generation(
        request=number,
        prompt_ids=range(prompt_tokens),
        parameters=SamplingParameters(max_tokens=10_000),
        tokenizer=None,
        eos_ids=(),
        room_tokens=10_000,
    )
    return Stream(generation=generation, told_s=0.0, reserved=reserved, rounds=[number] if reserved else [])


def schedule(total_tokens: int = 1024, slots: int = 4, longest: int = 256, step_tokens: int = 100) -> Schedule:
    return Schedule(KVBudget(total_tokens=total_tokens, slots=slots, max_sequence_tokens=longest), step_tokens)


def step(it: Schedule) -> list[tuple[int, int, int, bool]]:
    """The next step's works, done; those that draw get a token."""
    works = it.plan()
    it.done(works)
    for work in works:
        if work.draws:
            work.stream.generation.accept(7)
        elif work.stream.reserved and work.stream.held_tokens == work.stream.total_tokens:
            work.stream.rounds = []
    return [(work.stream.generation.request, work.start, work.end, work.draws) for work in works]


def test_a_prompt_comes_in_chunks_and_its_last_draws() -> None:
    it = schedule()
    it.add(stream(1, 230))
    assert [step(it) for _ in range(4)] == [
        [(1, 0, 100, False)],
        [(1, 100, 200, False)],
        [(1, 200, 230, True)],
        [(1, 230, 231, True)],
    ]


def test_decodes_come_before_chunks_which_share_what_is_left_oldest_first() -> None:
    it = schedule()
    it.add(stream(1, 10))
    step(it)
    it.add(stream(2, 80))
    it.add(stream(3, 80))
    assert step(it) == [(1, 10, 11, True), (2, 0, 80, True), (3, 0, 19, False)]
    assert step(it) == [(1, 11, 12, True), (2, 80, 81, True), (3, 19, 80, True)]


def test_more_decodes_than_step_tokens_all_run() -> None:
    it = schedule(step_tokens=2)
    for number in range(3):
        it.add(stream(number, 2))
        step(it)
        step(it)
        step(it)
    assert [work[0] for work in step(it)] == [0, 1, 2]


def test_who_does_not_fit_waits_and_holds_up_those_behind() -> None:
    it = schedule(total_tokens=256, slots=4, step_tokens=300)
    for number, tokens in enumerate((120, 120, 10)):
        it.add(stream(number, tokens))
    step(it)
    assert [s.generation.request for s in it.holding] == [0, 1]
    assert [s.generation.request for s in it.waiting] == [2]
    it.remove(it.holding[0])
    assert (2, 0, 10, True) in step(it)


def test_the_youngest_gives_up_its_memory_and_comes_back_first() -> None:
    it = schedule(total_tokens=320, slots=4)
    for number, tokens in enumerate((100, 100, 30, 5)):
        it.add(stream(number, tokens))
    for _ in range(3):
        step(it)
    assert (it.preemptions, [s.generation.request for s in it.waiting]) == (0, [3])
    while not it.preemptions:
        step(it)
    assert [s.generation.request for s in it.holding] == [0, 1]
    assert [s.generation.request for s in it.waiting] == [2, 3]
    assert it.waiting[0].held_tokens == 0
    tokens = it.waiting[0].total_tokens
    it.remove(it.holding[0])
    assert (2, 0, tokens, True) in step(it)


def test_a_reservation_is_fed_and_never_drawn_from() -> None:
    it = schedule()
    it.add(stream(1, 130, reserved=True))
    assert [step(it), step(it), step(it)] == [[(1, 0, 100, False)], [(1, 100, 130, False)], []]
    assert not it.has_work
    assert len(it.holding) == 1


def test_a_reservation_that_nobody_waits_for_gives_way_even_to_the_younger() -> None:
    it = schedule(total_tokens=256, slots=2)
    it.add(stream(1, 60, reserved=True))
    it.add(stream(2, 120))
    for _ in range(200 - 120):
        step(it)
    assert it.preemptions == 1
    assert [s.generation.request for s in it.holding] == [2]
    assert not it.waiting


def test_a_reservation_that_nobody_waits_for_gives_way_to_a_request_that_waits() -> None:
    it = schedule(total_tokens=256, slots=4, step_tokens=300)
    for number in (1, 2):
        it.add(stream(number, 60, reserved=True))
    step(it)
    it.add(stream(3, 150))
    assert step(it) == [(3, 0, 150, True)]
    assert [s.generation.request for s in it.holding] == [1, 3]
    assert (it.preemptions, it.waiting) == (1, [])


def test_no_reservation_gives_way_where_all_of_them_would_not_be_enough() -> None:
    it = schedule(total_tokens=256, slots=4, step_tokens=300)
    it.add(stream(1, 120))
    it.add(stream(2, 60, reserved=True))
    step(it)
    it.add(stream(3, 150))
    assert [work[0] for work in step(it)] == [1]
    assert [s.generation.request for s in it.holding] == [1, 2]


def test_a_reservation_gives_way_to_one_that_is_caught_up() -> None:
    it = schedule(total_tokens=256, slots=1, step_tokens=300)
    it.add(stream(1, 60, reserved=True))
    step(it)
    it.add(stream(2, 60, reserved=True))
    assert step(it) == [(2, 0, 60, False)]
    assert (it.waiting, it.has_work) == ([], False)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_comes_and_goes_all_is_computed_once_in_order_and_the_budget_holds(seed: int) -> None:
    draw = random.Random(seed)
    it = schedule(total_tokens=512, slots=draw.randint(1, 6), step_tokens=draw.randint(1, 200))
    left = [stream(number, draw.randint(1, 150)) for number in range(20)]
    held: dict[int, int] = {}
    for _ in range(20_000):
        if left and draw.random() < 0.2:
            it.add(left.pop())
        for number in [n for n in held if n not in {s.generation.request for s in it.holding}]:
            held[number] = 0
        preempted = it.preemptions
        works = it.plan()
        if it.preemptions > preempted:
            held.update({s.generation.request: 0 for s in it.waiting})
        assert it.budget.used_tokens <= 512
        for work in works:
            number = work.stream.generation.request
            assert work.start == held.get(number, 0)
            assert work.end <= work.stream.total_tokens
            held[number] = work.end
        it.done(works)
        for work in works:
            if work.draws:
                work.stream.generation.accept(1)
                if work.stream.total_tokens == 200 or draw.random() < 0.01:
                    it.remove(work.stream)
        if not left and not it.has_work:
            break
    assert not it.has_work
    assert it.budget.used_tokens == 0
