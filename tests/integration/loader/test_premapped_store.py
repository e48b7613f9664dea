"""A worker's connection that is opened and mapped before anybody asks for a model."""

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serverless_triton.backend.premapped_store import PremappedStore
from serverless_triton.loader import StoreUnavailable
from tests.integration.loader.test_store import assert_same, eventually

Daemon = Any
MakeCheckpoint = Callable[..., Path]


def mapped_arenas() -> list[str]:
    """The files, by device and inode, of every arena that this process maps: one name for each mapping.

    Tests that ran before may leave mappings until their garbage is collected; then a new arena may get an old name.
    """
    gc.collect()
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return [f"{words[3]} {words[4]}" for words in lines if any("serverless-triton-arena" in word for word in words)]


def mapped_since(before: list[str]) -> list[str]:
    return [arena for arena in mapped_arenas() if arena not in before]


def test_the_arena_is_mapped_before_a_model_is_asked_for(daemon: Daemon, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    others = mapped_arenas()
    premapped = PremappedStore(daemon.socket)
    premapped.open_ahead(wait_s=20)
    ahead = mapped_since(others)

    with premapped.take() as store:
        attachment = store.attach(directory)

        assert len(ahead) == 1
        assert mapped_since(others) == ahead
        assert_same(attachment, directory)


def test_a_daemon_that_died_meanwhile_is_no_matter(daemon: Daemon, make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    others = mapped_arenas()
    premapped = PremappedStore(daemon.socket)
    premapped.open_ahead(wait_s=20)
    child = daemon.child()
    os.kill(child, signal.SIGKILL)
    eventually(lambda: daemon.child() not in (0, child))

    with premapped.take() as store:
        assert_same(store.attach(directory), directory)
        assert len(mapped_since(others)) == 1


def test_another_store_at_the_same_place_is_mapped_anew(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint
) -> None:
    first, directory = start_daemon(), make_checkpoint()
    premapped = PremappedStore(first.socket)
    premapped.open_ahead(wait_s=20)
    first.stop()
    second = start_daemon()
    with second.connect() as probe:
        probe.status()
    first.socket.symlink_to(second.socket)

    with premapped.take() as store:
        assert_same(store.attach(directory), directory)


def test_a_store_that_comes_later_is_asked_for_again(
    start_daemon: Callable[..., Daemon], make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    premapped = PremappedStore(tmp_path / "later")
    premapped.open_ahead(wait_s=0)
    with pytest.raises(StoreUnavailable):
        premapped.take()
    daemon, directory = start_daemon(), make_checkpoint()
    (tmp_path / "later").symlink_to(daemon.socket)
    with daemon.connect() as store:
        store.status()

    with premapped.take() as store:
        assert_same(store.attach(directory), directory)
