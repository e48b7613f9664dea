"""The server's loop without clients: what it says of a request at which it failed, how often it tells progress."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_triton.loader import _core
from serverless_triton.loader.estimator import Throttles
from serverless_triton.loader.replies import Failed
from serverless_triton.loader.requests import Attach, Evict, Request
from serverless_triton.loader.server import StoreParts, StoreServer
from serverless_triton.loader.state_slots import StateSlots
from serverless_triton.loader.store_status import SsdCacheStatus

URL = "https://me:SECRET@host/a?signature=SECRET"


class Unused:
    """A loader and opener that is never asked."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StoreServer]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "store"))
        listener.listen()
        server = StoreServer(
            StoreParts(
                listener=listener,
                arena=_core.Arena(2 << 20, "4k"),
                slots=StateSlots.create(),
                loader=Unused(),
                opener=Unused(),
                ssd_cache=lambda: SsdCacheStatus(capacity_bytes=0, used_bytes=0, entries=0, problem=""),
                throttles=Throttles(),
                prefault=False,
            )
        )
        yield server
        server._shut_down()


@pytest.mark.parametrize("request_", [Attach(id=7, path=URL, session="s", progress=False), Evict(id=7, path=URL)])
def test_a_bug_of_ours_shows_no_secret_of_a_url(
    request_: Request, server: StoreServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    replies = []
    monkeypatch.setattr(server, "reply", lambda _, message: replies.append(message))
    monkeypatch.setattr(server._dispatcher, "_dispatch", lambda *_: 1 // 0)

    server.on_request(1, request_)

    [reply] = replies
    assert isinstance(reply, Failed)
    assert reply.id == 7
    for said in (caplog.text, reply.message):
        assert "https://host/a" in said
        assert "SECRET" not in said


def test_news_that_wakes_the_loop_is_no_reason_for_more_news(server: StoreServer, monkeypatch: pytest.MonkeyPatch):
    told: list[None] = []

    def tell_progress() -> bool:
        told.append(None)
        server.post(lambda: None)
        return True

    monkeypatch.setattr(server._keeper, "tell_progress", tell_progress)
    monkeypatch.setattr("serverless_triton.loader.server.PROGRESS_S", 1000.0)
    server._register()

    server.expect_progress()
    for _ in range(3):
        server.post(lambda: None)
        server._step()

    assert len(told) == 1
