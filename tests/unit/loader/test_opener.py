"""Opening URLs beside the loop: answers come back through it, and not to those who gave up. What checkpoints go by."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

import pytest

from serverless_triton.loader.checkpoint import Checkpoint
from serverless_triton.loader.errors import CheckpointNotFound, CheckpointUnreadable, LoaderError
from serverless_triton.loader.host_pool import MAX_THREADS_OF_A_HOST
from serverless_triton.loader.opener import Resolver, known_as
from tests.unit.loader.keeper_driver import checkpoint

WAIT_S = 10.0


class HandOpener:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.failure: Exception | None = None

    def open(self, path: str) -> Checkpoint:
        assert self.may_answer.wait(WAIT_S)
        if self.failure:
            raise self.failure
        return checkpoint(path)


class Desk:
    """A resolver, the loop that it posts to, and what its requests came to."""

    def __init__(self) -> None:
        self.opener = HandOpener()
        self.posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.resolver = Resolver(self.opener, self.posted.put)
        self.opened: list[str] = []
        self.failed: list[LoaderError] = []

    def open(self, client: int, request_id: int) -> None:
        opened = lambda found: self.opened.append(found.path)  # noqa: E731
        self.resolver.open(client, request_id, f"s3://b/{client}.{request_id}", opened, self.failed.append)

    def answer(self) -> None:
        """One answer arrives at the loop."""
        self.opener.may_answer.set()
        self.posted.get(timeout=WAIT_S)()


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_loop_gets_the_answer(desk: Desk) -> None:
    desk.open(1, 1)
    assert desk.opened == []
    desk.answer()

    assert (desk.opened, desk.failed) == (["s3://b/1.1"], [])
    assert not desk.resolver.cancel(1, 1)


def test_errors_arrive_as_they_are(desk: Desk) -> None:
    desk.opener.failure = CheckpointNotFound("nothing there")
    desk.open(1, 1)
    desk.answer()

    assert [type(error) for error in desk.failed] == [CheckpointNotFound]


def test_a_bug_of_ours_is_an_answer_too(desk: Desk) -> None:
    desk.opener.failure = ZeroDivisionError("a bug")
    desk.open(1, 1)
    desk.answer()

    assert "a bug" in str(desk.failed[0])


def test_a_bug_of_ours_shows_no_secret_of_the_url(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.opener.failure = ZeroDivisionError("a bug")
    desk.resolver.open(1, 1, "https://me:SECRET@host/a?signature=SECRET", lambda _: None, desk.failed.append)
    desk.answer()

    assert "https://host/a" in caplog.text
    assert "SECRET" not in caplog.text + str(desk.failed[0])


def test_who_gave_up_hears_nothing_more(desk: Desk) -> None:
    for request_id in (1, 2):
        desk.open(1, request_id)
    desk.open(2, 1)
    assert desk.resolver.cancel(1, 1)
    assert not desk.resolver.cancel(1, 9)
    desk.resolver.cancel_all(2)
    for _ in range(3):
        desk.answer()

    assert desk.opened == ["s3://b/1.2"]


def test_who_gave_up_keeps_no_place_in_the_queue(desk: Desk) -> None:
    for request_id in range(MAX_THREADS_OF_A_HOST + 2):
        desk.open(1, request_id)
    assert desk.resolver.cancel(1, MAX_THREADS_OF_A_HOST)
    for _ in range(MAX_THREADS_OF_A_HOST + 1):
        desk.answer()

    assert sorted(desk.opened) == sorted(
        f"s3://b/1.{n}" for n in (*range(MAX_THREADS_OF_A_HOST), MAX_THREADS_OF_A_HOST + 1)
    )
    assert desk.posted.empty()


def test_closing_does_not_wait_for_a_server(desk: Desk) -> None:
    desk.open(1, 1)
    desk.resolver.close()
    desk.answer()

    assert desk.opened == []


@pytest.mark.parametrize("path", ["a" * 5000, "a/" * 3000, "file:///" + "a" * 300])
def test_a_path_that_no_file_can_have_is_unreadable(path: str) -> None:
    with pytest.raises(CheckpointUnreadable, match="File name too long"):
        known_as(path)
