"""What waits for a receiver: tokens grow together, nothing is lost or reordered, nobody who speaks waits."""

from __future__ import annotations

import threading
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_triton.backend.messages import CaughtUp, Failed, Position, Tokens
from serverless_triton.backend.outbox import Outbox, merge

WAIT_S = 10.0


def tokens(first_position: int, *output_ids: int, request: int = 1, text: str = "") -> Tokens:
    return Tokens(
        request=request, first_position=first_position, output_ids=list(output_ids), text=text, num_input_tokens=3
    )


def position(held_tokens: int) -> Position:
    return Position(request=1, state="prefilling", held_tokens=held_tokens, total_tokens=9)


FAILED = Failed(request=1, code="INTERNAL", message="")


def test_tokens_that_nobody_took_yet_become_one_message():
    outbox = Outbox()
    outbox.put(replace(tokens(4, 7, text="a"), prompt_ids=[1, 2, 3]))
    outbox.put(tokens(5, 8, text="b"))
    outbox.put(replace(tokens(6, 9, text="c"), finish_reason="stop"))
    assert outbox.take() == [replace(tokens(4, 7, 8, 9, text="abc"), prompt_ids=[1, 2, 3], finish_reason="stop")]


def test_each_request_has_its_own_and_whose_news_waits_longest_is_first():
    outbox = Outbox()
    for news in (tokens(0, 1, request=2), tokens(0, 5, request=1), tokens(1, 2, request=2)):
        outbox.put(news)
    assert [outbox.take(), outbox.take()] == [[tokens(0, 1, 2, request=2)], [tokens(0, 5, request=1)]]


def test_a_failure_comes_after_the_tokens_before_it():
    outbox = Outbox()
    for news in (tokens(0, 1), FAILED):
        outbox.put(news)
    assert outbox.take() == [tokens(0, 1), FAILED]


def test_only_the_last_position_counts_and_tokens_are_news_enough():
    assert merge(position(1), position(2)) == position(2)
    assert merge(position(2), tokens(0, 1)) == tokens(0, 1)
    assert merge(tokens(0, 1), position(2)) == tokens(0, 1)
    assert merge(position(2), CaughtUp(request=1, held_tokens=9)) == CaughtUp(request=1, held_tokens=9)


def test_a_heartbeat_before_the_first_tokens_hides_nothing_of_them():
    heartbeat = replace(tokens(0), num_input_tokens=0)
    first = replace(tokens(0, 7, text="a"), prompt_ids=[1, 2, 3])
    assert merge(heartbeat, first) == first


def test_tokens_with_a_gap_between_them_stay_apart_for_the_receiver_to_notice():
    assert merge(tokens(0, 1), tokens(2, 3)) is None


def test_nothing_comes_after_a_last_message():
    last = replace(tokens(0, 1), finish_reason="stop")
    assert merge(last, tokens(1, 2)) is None
    assert merge(FAILED, tokens(1, 2)) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=40))
def test_whenever_it_is_emptied_every_request_hears_all_its_tokens_in_order(steps: list[tuple[int, bool]]):
    outbox, made = Outbox(), {1: 0, 2: 0, 3: 0}
    heard: dict[int, list[int]] = {1: [], 2: [], 3: []}

    def take() -> None:
        for message in outbox.take() or ():
            assert isinstance(message, Tokens)
            assert message.first_position == len(heard[message.request])
            heard[message.request] += message.output_ids

    for request, takes in steps:
        outbox.put(tokens(made[request], made[request], request=request))
        made[request] += 1
        if takes:
            take()
    while outbox._waiting:
        take()
    assert heard == {request: list(range(count)) for request, count in made.items()}


def test_a_taker_waits_for_news_and_ends_when_the_box_is_closed():
    outbox, taken = Outbox(), []

    def take_all() -> None:
        while (news := outbox.take()) is not None:
            taken.append(news)

    taker = threading.Thread(target=take_all)
    taker.start()
    outbox.put(tokens(0, 1))
    assert outbox.wait_until_idle(WAIT_S)
    assert taken == [[tokens(0, 1)]]
    outbox.close()
    taker.join(WAIT_S)
    assert not taker.is_alive()
    outbox.put(tokens(1, 2))
    assert outbox.take() is None


def test_who_waits_for_a_taker_that_is_stuck_gets_his_time_back():
    outbox = Outbox()
    outbox.put(tokens(0, 1))
    outbox.take()
    assert not outbox.wait_until_idle(0.01)
