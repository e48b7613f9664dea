"""Slow looks beside the loop: what hangs keeps those back who ask about the same, and nobody else."""

import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

import pytest

from serverless_triton.loader import lookups
from serverless_triton.loader.errors import CheckpointNotFound, LoaderError, StoreUnavailable
from serverless_triton.loader.lookups import Lookups

WAIT_S = 10.0
URL = "https://me:SECRET@host/a?signature=SECRET"


class Place:
    """Looked at, it answers when the test says so; it knows how often it was looked at."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.failure: Exception | None = None
        self.looks = 0

    def look(self, name: str) -> str:
        self.looks += 1
        assert self.may_answer.wait(WAIT_S)
        if self.failure:
            raise self.failure
        return name


class Desk:
    """Lookups, the loop that they post to, and what they came to. One place hangs, all others answer at once."""

    def __init__(self) -> None:
        self.hanging, self.quick = Place(), Place()
        self.quick.may_answer.set()
        self.posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.lookups = Lookups(self.posted.put)
        self.found: list[str] = []
        self.failed: list[LoaderError] = []

    def ask(self, client: int, request_id: int, subject: str) -> None:
        place = self.hanging if subject.startswith("/hangs") else self.quick
        look = partial(place.look, f"{client}.{request_id} {subject}")
        self.lookups.ask(client, request_id, subject, look, self.found.append, self.failed.append)

    def answer(self) -> None:
        """One answer arrives at the loop."""
        self.posted.get(timeout=WAIT_S)()


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_what_hangs_keeps_nobody_else_back(desk: Desk) -> None:
    desk.ask(1, 1, "/hangs")
    desk.ask(2, 1, "/a")
    desk.answer()
    assert desk.found == ["2.1 /a"]

    desk.hanging.may_answer.set()
    desk.answer()
    assert desk.found == ["2.1 /a", "1.1 /hangs"]


def test_however_often_a_hanging_path_is_asked_for_it_keeps_one_thread(desk: Desk) -> None:
    for request_id in range(2 * lookups.MAX_LOOKING):
        desk.ask(1, request_id, "/hangs")
    desk.ask(2, 1, "/a")
    desk.answer()
    assert (desk.found, desk.hanging.looks) == (["2.1 /a"], 1)

    desk.hanging.may_answer.set()
    for _ in range(2 * lookups.MAX_LOOKING):
        desk.answer()
    asked = [f"1.{request_id} /hangs" for request_id in range(2 * lookups.MAX_LOOKING)]
    assert desk.found == ["2.1 /a", *asked]


def test_errors_arrive_as_they_are_and_the_next_is_looked_at(desk: Desk) -> None:
    desk.hanging.failure = CheckpointNotFound("nothing there")
    for request_id in (1, 2):
        desk.ask(1, request_id, "/hangs")
    desk.hanging.may_answer.set()
    desk.answer()
    desk.answer()

    assert [type(error) for error in desk.failed] == [CheckpointNotFound] * 2


def test_a_bug_of_ours_is_an_answer_too_and_shows_no_secret(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.lookups.ask(1, 1, URL, lambda: 1 // 0, lambda _: None, desk.failed.append)
    desk.answer()

    for said in (caplog.text, str(desk.failed[0])):
        assert "https://host/a" in said
        assert "SECRET" not in said


def test_who_gave_up_hears_nothing_more_and_is_not_looked_for(desk: Desk) -> None:
    for request_id in (1, 2, 3):
        desk.ask(1, request_id, "/hangs")
    desk.ask(2, 1, "/hangs")
    assert desk.lookups.cancel(1, 1)
    assert desk.lookups.cancel(1, 2)
    assert not desk.lookups.cancel(1, 9)
    desk.lookups.cancel_all(2)
    desk.hanging.may_answer.set()
    desk.answer()
    desk.answer()

    assert desk.found == ["1.3 /hangs"]
    assert desk.hanging.looks == 2
    assert not desk.lookups.cancel(1, 3)


def test_two_requests_of_one_id_are_both_answered(desk: Desk) -> None:
    for subject in ("/hangs", "/a"):
        desk.ask(1, 1, subject)
    desk.hanging.may_answer.set()
    desk.answer()
    desk.answer()

    assert sorted(desk.found) == ["1.1 /a", "1.1 /hangs"]


def test_a_client_that_asks_without_end_is_refused_and_others_are_not(desk: Desk) -> None:
    for request_id in range(lookups.MAX_WAITING):
        desk.ask(1, request_id, "/hangs")
    with pytest.raises(StoreUnavailable, match="ask again later"):
        desk.ask(1, 999, "/hangs")
    desk.ask(2, 1, "/hangs")

    desk.lookups.cancel_all(1)
    desk.ask(1, 1, "/a")
    desk.hanging.may_answer.set()


def test_closing_does_not_wait_for_what_hangs(desk: Desk) -> None:
    desk.ask(1, 1, "/hangs")
    desk.ask(1, 2, "/hangs")
    desk.lookups.close()
    desk.hanging.may_answer.set()
    desk.answer()

    assert desk.found == []
