"""A server that does not answer holds up nobody who asks another."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from serverless_triton.loader.errors import RemoteUnavailable
from serverless_triton.loader.host_pool import MAX_THREADS_OF_A_HOST, MAX_WAITING_FOR_A_HOST, HostPool, Ticket

WAIT_S = 10.0


class Desk:
    """Work for a server that is dead until the test says otherwise, and for others, which answer at once."""

    def __init__(self) -> None:
        self.pool = HostPool()
        self.answers = threading.Event()
        self.done: SimpleQueue[str] = SimpleQueue()

    def ask_dead(self, name: str) -> Ticket:
        return self.pool.submit("dead", lambda: (self.answers.wait(WAIT_S), self.done.put(name))[1])

    def ask_other(self, name: str) -> Ticket:
        return self.pool.submit("other", lambda: self.done.put(name))

    def next_done(self) -> str:
        return self.done.get(timeout=WAIT_S)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.answers.set()
    desk.pool.close()


def test_a_dead_server_takes_its_own_threads_only(desk: Desk) -> None:
    for number in range(3 * MAX_THREADS_OF_A_HOST):
        desk.ask_dead(f"dead {number}")
    desk.ask_other("other")

    assert desk.next_done() == "other"


def test_what_waits_has_its_turn_when_the_server_answers(desk: Desk) -> None:
    asked = [f"dead {number}" for number in range(3 * MAX_THREADS_OF_A_HOST)]
    for name in asked:
        desk.ask_dead(name)
    desk.answers.set()

    assert {desk.next_done() for _ in asked} == set(asked)


def test_what_is_dropped_gives_its_place_free_and_is_not_done(desk: Desk) -> None:
    for _ in range(MAX_THREADS_OF_A_HOST):
        desk.ask_dead("runs")
    waiting = [desk.ask_dead("waits") for _ in range(MAX_WAITING_FOR_A_HOST)]
    with pytest.raises(RemoteUnavailable, match="wait for answers of the same server"):
        desk.ask_dead("one too many")
    for ticket in waiting:
        desk.pool.drop(ticket)
    desk.ask_dead("last")
    desk.answers.set()

    done = [desk.next_done() for _ in range(MAX_THREADS_OF_A_HOST + 1)]
    assert sorted(done) == ["last"] + ["runs"] * MAX_THREADS_OF_A_HOST


def test_what_runs_or_is_done_may_be_dropped_too(desk: Desk) -> None:
    running, done = desk.ask_dead("runs"), desk.ask_other("done")
    assert desk.next_done() == "done"
    desk.pool.drop(done)
    desk.pool.drop(running)
    desk.answers.set()

    assert desk.next_done() == "runs"


def test_dead_servers_that_take_every_thread_do_not_keep_the_places_of_what_is_dropped(desk: Desk) -> None:
    hosts = [f"dead {number}" for number in range(20)]
    tickets = [
        desk.pool.submit(host, lambda: (desk.answers.wait(WAIT_S), desk.done.put("dead"))[1])
        for host in hosts
        for _ in range(MAX_THREADS_OF_A_HOST)
    ]
    dropped = tickets[100:]  # of those that no thread is left for
    for ticket in dropped:
        desk.pool.drop(ticket)
    desk.ask_other("other")
    desk.answers.set()

    assert "other" in {desk.next_done() for _ in range(101)}
