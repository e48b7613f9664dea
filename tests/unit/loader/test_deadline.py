"""How long a client waits while an answer gets nearer, or does not."""

import pytest

from serverless_triton.loader.deadline import Deadline
from serverless_triton.loader.replies import Progress


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def news(done: int, ahead: int = 0) -> Progress:
    return Progress(id=1, bytes_done=done, bytes_total=9, bytes_ahead=ahead)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("moved", [news(1), news(0, ahead=4)])
def test_a_standstill_begins_anew_with_every_byte_read_here_or_ahead(clock: Clock, moved: Progress) -> None:
    deadline = Deadline(10.0, of_standstill=True, clock=clock)
    deadline.hear(news(0, ahead=5))
    clock.now_s += 9
    deadline.hear(moved)
    clock.now_s += 9

    assert deadline.left_s == 1.0


def test_news_that_says_nothing_new_does_not_prolong_a_standstill(clock: Clock) -> None:
    deadline = Deadline(10.0, of_standstill=True, clock=clock)
    deadline.hear(news(3, ahead=5))
    clock.now_s += 11
    deadline.hear(news(3, ahead=5))

    assert deadline.left_s == 0.0
    assert str(deadline) == "stood still for 10 s"


def test_a_time_in_all_is_not_prolonged(clock: Clock) -> None:
    deadline = Deadline(0.5, clock=clock)
    clock.now_s += 1
    deadline.hear(news(1))

    assert deadline.left_s == 0.0
    assert str(deadline) == "took longer than 0.5 s"
