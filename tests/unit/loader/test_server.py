"""What the server says of a request at which it failed."""

import socket
from pathlib import Path

import pytest

from serverless_triton.loader import _core
from serverless_triton.loader.estimator import Throttles
from serverless_triton.loader.messages import Attach, Evict, Failed, Request, SsdCacheStatus
from serverless_triton.loader.server import StoreParts, StoreServer
from serverless_triton.loader.state_slots import StateSlots

URL = "https://me:SECRET@host/a?signature=SECRET"


class Unused:
    """A loader and opener that is never asked."""


@pytest.mark.parametrize("request_", [Attach(id=7, path=URL, session="s", progress=False), Evict(id=7, path=URL)])
def test_a_bug_of_ours_shows_no_secret_of_a_url(
    request_: Request, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    replies = []
    with socket.socket(socket.AF_UNIX) as listener:
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
        monkeypatch.setattr(server, "reply", lambda _, message: replies.append(message))
        server._guarded(1, request_, lambda: 1 // 0)
        server._shut_down()

    [reply] = replies
    assert isinstance(reply, Failed)
    assert reply.id == 7
    for said in (caplog.text, reply.message):
        assert "https://host/a" in said
        assert "SECRET" not in said
