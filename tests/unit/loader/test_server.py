"""The server's loop without clients: what it says of failed requests, how often of progress, what it waits for."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_triton.loader import _core
from serverless_triton.loader.estimator import Throttles
from serverless_triton.loader.replies import Failed, Reply
from serverless_triton.loader.requests import Attach, AttachDevice, Evict, GetEstimate, GetStatus, Request
from serverless_triton.loader.server import StoreParts, StoreServer
from serverless_triton.loader.state_slots import StateSlots
from serverless_triton.loader.store_status import SsdCacheStatus

WAIT_S = 10.0
URL = "https://me:SECRET@host/a?signature=SECRET"


class Unused:
    """A loader and opener that is never asked."""


@pytest.fixture
def gpu_bytes() -> int:
    return 0


@pytest.fixture
def server(tmp_path: Path, gpu_bytes: int) -> Iterator[StoreServer]:
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
                ssd_cache=lambda: SsdCacheStatus(capacity_bytes=0, used_bytes=0, entries=0, urls=(), problem=""),
                throttles=Throttles(),
                gpu_bytes=gpu_bytes,
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


class Driver:
    """One that takes its time to find its GPUs, of which it has one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_answer = threading.Event()
        self.looks = 0
        monkeypatch.setattr("serverless_triton.loader.device_tier._core.gpu_uuids", self.gpu_uuids)

    def gpu_uuids(self) -> list[str]:
        self.looks += 1
        assert self.may_answer.wait(WAIT_S)
        return ["GPU-1"]


@pytest.fixture
def replies(server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> list[Reply]:
    """What the server answers, in that order."""
    replies: list[Reply] = []
    monkeypatch.setattr(server, "reply", lambda _, message: replies.append(message))
    server._register()
    return replies


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Of a checkpoint that nobody reads."""
    (tmp_path / "model.safetensors").write_bytes(b"")
    return str(tmp_path)


@pytest.mark.parametrize("gpu_bytes", [1 << 30])
def test_gpus_are_looked_for_once_and_beside_the_loop(
    server: StoreServer, replies: list[Reply], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    driver = Driver(monkeypatch)
    server.on_request(1, GetEstimate(id=1, path=path, device="GPU-9"))
    server.on_request(2, AttachDevice(id=2, path=path, device="GPU-9", session="s", progress=False))
    while not driver.looks:
        server.post(lambda: None)
        server._step()
    server.on_request(3, GetStatus(id=3))
    assert [reply.id for reply in replies] == [3]

    driver.may_answer.set()
    while len(replies) < 3:
        server._step()
    assert driver.looks <= 2  # both asked before the first had an answer
    server.on_request(2, AttachDevice(id=4, path=path, device="GPU-9", session="s", progress=False))
    while len(replies) < 4:
        server._step()
    assert driver.looks <= 2
    assert all("there are GPU-1" in reply.message for reply in replies[1:])


def test_a_store_without_a_gpu_tier_opens_no_driver(
    server: StoreServer, replies: list[Reply], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    driver = Driver(monkeypatch)
    server.on_request(1, GetEstimate(id=1, path=path, device="GPU-1"))
    while not replies:
        server._step()

    assert "--gpu-bytes" in replies[0].message
    assert driver.looks == 0
