"""How long a client waits while an answer gets nearer, or does not."""

from pathlib import Path

import pytest

from serverless_triton.loader.client import Store
from serverless_triton.loader.deadline import MOST_TIMEOUT_S, Deadline
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


@pytest.mark.parametrize("wrong", [-1, -0.001, float("nan"), float("inf"), 2 * MOST_TIMEOUT_S])
def test_what_is_no_time_to_wait_is_refused_with_what_would_be(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"timeout_s is .*; give a number of seconds from 0 to 2000000"):
        Deadline(wrong)


@pytest.mark.parametrize("wrong", ["5", None, True, [1]])
def test_what_is_no_number_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"timeout_s is .*; give a number of seconds"):
        Deadline(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["timeout_s", "connect_timeout_s"])
def test_a_store_checks_its_times_before_it_connects(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is -1"):
        Store(tmp_path / "nowhere", **{name: -1})
