"""How the threads of the store come to an end, those that block included."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from serverless_triton.loader import _core
from serverless_triton.loader.cache import Image
from serverless_triton.loader.checkpoint import Checkpoint
from serverless_triton.loader.effects import LoadResult
from serverless_triton.loader.errors import StoreCancelled
from serverless_triton.loader.remote.loader import RemoteLoader
from serverless_triton.loader.remote.settings import RemoteSettings
from serverless_triton.loader.work import Work

CHECKPOINT = Checkpoint(path="/a", device="disk:1", files=())
WAIT_S = 10.0


class HandLoader:
    """Is at it until it is cancelled or, where it hangs as a mount does, until the test lets it go."""

    def __init__(self, *, hangs: bool) -> None:
        self.hangs = hangs
        self.is_loading = threading.Event()
        self.may_end = threading.Event()

    def load(self, _checkpoint: Any, _extents: Any, job: _core.ReadJob, _sink: Any = None) -> LoadResult:
        self.is_loading.set()
        while self.hangs or not job.is_cancelled:
            if self.may_end.wait(0.01):
                break
        raise StoreCancelled("cancelled")


StartLoad = Callable[..., tuple[Work, HandLoader]]


@pytest.fixture
def start_load() -> Iterator[StartLoad]:
    loaders = []

    def start(*, hangs: bool) -> tuple[Work, HandLoader]:
        loader, reports = HandLoader(hangs=hangs), Any
        loaders.append(loader)
        streaming: Any = lambda _: nullcontext()  # noqa: E731
        work = Work(_core.Arena(2 << 20, "4k"), loader, reports, lambda _: None, streaming)
        work.start_load(Image(id=1, checkpoint=CHECKPOINT, described_bytes=0))
        assert loader.is_loading.wait(WAIT_S)
        return work, loader

    yield start
    for loader in loaders:
        loader.may_end.set()


def test_a_load_that_can_be_cancelled_has_ended_when_the_store_closes(start_load: StartLoad, caplog: Any) -> None:
    work, _ = start_load(hangs=False)
    begin_s = time.monotonic()
    work.close(begin_s + WAIT_S)

    assert time.monotonic() - begin_s < WAIT_S
    assert "not waiting" not in caplog.text


def test_a_load_that_hangs_is_waited_for_until_the_deadline(start_load: StartLoad, caplog: Any) -> None:
    work, _ = start_load(hangs=True)
    begin_s = time.monotonic()
    work.close(begin_s + 0.1)

    assert 0.1 <= time.monotonic() - begin_s < WAIT_S
    assert "1 loads or moves still run" in caplog.text


def test_all_writers_of_the_cache_share_one_deadline() -> None:
    waited_s: list[float] = []

    class Stuck:
        def join(self, timeout_s: float) -> None:
            waited_s.append(timeout_s)
            time.sleep(timeout_s)

    loader = RemoteLoader(RemoteSettings(), None)
    loader._writers = [Stuck(), Stuck(), Stuck()]  # type: ignore[list-item]
    loader.settle(0.1)

    assert waited_s[0] > 0
    assert waited_s[1:] == [0.0, 0.0]
