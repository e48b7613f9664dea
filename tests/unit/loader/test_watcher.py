"""Watching processes: what is open, and what is told to whom."""

import errno
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serverless_triton.loader import processes
from serverless_triton.loader.processes import process_of
from serverless_triton.loader.watcher import Watcher


class World:
    """A loop that a test turns by hand."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.ended: list[int] = []
        self.later: list[Callable[[], None]] = []
        self.watcher = Watcher(self.selector, self.ended.append, lambda _, call: self.later.append(call))

    def watched(self) -> int:
        return len(self.selector.get_map())

    def turn(self) -> None:
        for key, _ in self.selector.select(10):
            key.data()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.selector.close()


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_process_is_watched_once_for_all_who_ask(world: World, child: "subprocess.Popen[bytes]") -> None:
    for client in (1, 1, 2):
        world.watcher.watch(client, process_of(child.pid))
    assert world.watched() == 1
    child.kill()
    world.turn()

    assert world.ended == [1, 2]
    assert world.watched() == 0


def test_what_was_reclaimed_by_all_is_watched_no_more(world: World) -> None:
    for _ in range(2):
        world.watcher.watch(1, process_of(os.getpid()))
    before = len(list(Path("/proc/self/fd").iterdir()))
    world.watcher.unwatch(1)
    assert world.watched() == 1
    world.watcher.unwatch(1)
    world.watcher.unwatch(1)

    assert world.watched() == 0
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1


def test_a_process_that_has_ended_is_told_from_the_loop(world: World, child: "subprocess.Popen[bytes]") -> None:
    process = process_of(child.pid)
    child.kill()
    child.wait()
    world.watcher.watch(1, process)
    assert world.ended == []
    world.later.pop()()

    assert world.ended == [1]


def test_who_cannot_be_watched_now_is_not_taken_for_dead(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(pid: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(processes.os, "pidfd_open", exhausted)
        world.watcher.watch(1, process_of(os.getpid()))
    assert world.watched() == 0
    world.later.pop()()

    assert world.watched() == 1
    assert world.ended == []
