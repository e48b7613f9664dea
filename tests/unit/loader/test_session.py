"""A client's session with a store that is not there, or no more: what its threads get, and how soon."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_triton.loader import Store, StoreCancelled, StoreError, StoreUnavailable
from serverless_triton.loader.deadline import Deadline
from serverless_triton.loader.requests import Release
from serverless_triton.loader.store_link import StoreLink


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    """A store that takes connections as a test has it, and answers nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(20)
        listener.bind(str(path))
        listener.listen()
        yield listener


def asking(store: Store) -> tuple[threading.Thread, list[StoreError]]:
    """A thread that asks, and what it gets."""
    errors: list[StoreError] = []

    def ask() -> None:
        try:
            store.status()
        except StoreError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, errors


def test_closing_a_store_that_reconnects_ends_its_waiting(path: Path, listener: socket.socket) -> None:
    store = Store(path)
    listener.accept()[0].close()
    thread, errors = asking(store)
    connection, _ = listener.accept()
    assert connection.recv(1000)  # the question that nobody answers
    begin_s = time.monotonic()

    store.close()
    thread.join()

    assert time.monotonic() - begin_s < 1
    assert [type(error) for error in errors] == [StoreCancelled]
    connection.close()


def test_closing_a_store_before_it_has_found_another_ends_its_search(
    path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serverless_triton.loader.session.RECONNECT_TIMEOUT_S", 20.0)
    store = Store(path)
    path.unlink()
    listener.accept()[0].close()
    thread, errors = asking(store)
    begin_s = time.monotonic()

    store.close()
    thread.join()

    assert time.monotonic() - begin_s < 1
    assert [type(error) for error in errors] == [StoreCancelled]


def test_who_waits_learns_of_a_loss_that_a_finalizer_saw_first(path: Path, listener: socket.socket) -> None:
    link = StoreLink(str(path), 1.0, None)
    listener.accept()[0].close()

    assert not link.post(Release(image_id=1))

    with pytest.raises(StoreUnavailable, match="closed the connection"):
        link.wait(1, Deadline(20.0), None)
    assert link.is_lost()
