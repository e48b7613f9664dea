"""Where the bytes of a URL come from: its copy on the SSD, or the network when that turns out to be bad."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serverless_triton.loader import _core
from serverless_triton.loader.checkpoint import Checkpoint
from serverless_triton.loader.effects import LoadResult
from serverless_triton.loader.errors import CheckpointChanged
from serverless_triton.loader.remote.ssd_cache import SsdCache
from serverless_triton.loader.remote_tier import RemoteTier
from tests.unit.loader.test_remote_cache import checkpoint

FROM_NETWORK = LoadResult(tier="remote", direct_io=False, verified=False)
FROM_COPY = LoadResult(tier="ssd", direct_io=False, verified=True)


class Events(list[str]):
    """What was read, and what the sink was told, in order."""

    def chunk_ready(self, *_: object) -> None:
        self.append("chunk")

    def restart(self) -> None:
        self.append("restart")


class Copies:
    """Reads copies, which is over when the outcome is there."""

    def __init__(self, outcome: LoadResult | Exception) -> None:
        self.outcome = outcome

    def load(self, _checkpoint: Checkpoint, _extents: Any, _job: Any, sink: Any = None) -> LoadResult:
        sink.chunk_ready()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Network:
    def __init__(self, events: Events) -> None:
        self.loader = self.opener = self
        self.events = events

    def load(self, *_: object, **__: object) -> LoadResult:
        self.events.append("fetch")
        return FROM_NETWORK


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[SsdCache]:
    cache = SsdCache(tmp_path, 1 << 20)
    yield cache
    cache.close()


def load_copy(cache: SsdCache, outcome: LoadResult | Exception, events: Events) -> LoadResult:
    arena, copies = _core.Arena(2 << 20, "4k"), Copies(outcome)
    tier = RemoteTier(local=copies, copies=copies, arena=arena, verify=True, cache=cache, bytes_per_second=0)
    tier._connected = Network(events)  # type: ignore[assignment]
    remote = checkpoint()
    copied = replace(remote, files=tuple(replace(file, cached_path="/copy") for file in remote.files))
    sink: Any = events
    return tier.load(copied, [], _core.ReadJob(), sink)


def test_a_copy_is_read_and_told_of_as_local_files_are(cache: SsdCache, events: Events) -> None:
    assert load_copy(cache, FROM_COPY, events) == FROM_COPY
    assert events == ["chunk"]


def test_what_was_told_of_a_bad_copy_does_not_count_for_the_original(cache: SsdCache, events: Events) -> None:
    assert load_copy(cache, CheckpointChanged("somebody was there"), events) == FROM_NETWORK
    assert events == ["chunk", "restart", "fetch"]
    assert "somebody was there" in cache.status.problem


def test_a_copy_without_hashes_is_as_bad_as_one_that_differs(cache: SsdCache, events: Events) -> None:
    assert load_copy(cache, replace(FROM_COPY, verified=False), events) == FROM_NETWORK
    assert events == ["chunk", "restart", "fetch"]
    assert "hashes are gone" in cache.status.problem
