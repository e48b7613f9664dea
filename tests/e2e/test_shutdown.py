"""Whatever ends the supervisor, nothing of its run is left."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from serverless_triton.backend.sentinel import processes_of
from serverless_triton.cli.local_cluster import LocalCluster
from tests.e2e.conftest import DRAM_BYTES, ROOM_FOR_ONE

GONE_TIMEOUT_S = 30.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(repository: Path, tmp_path: Path, number: signal.Signals) -> None:
    with LocalCluster(
        tmp_path, repository, servers=1, device_memory_bytes=ROOM_FOR_ONE, dram_bytes=DRAM_BYTES
    ) as cluster:
        heard = cluster.generate("alpha", "Hello", max_tokens=2)
        run, directory, prefix = cluster.run_id(), cluster.run_directory(), cluster.shm_prefix()
        assert heard.errors == []
        assert len(list(processes_of(run))) >= 6
        assert list(Path("/dev/shm").glob(f"{prefix}*"))

        cluster.stop(number)

    assert gone(lambda: not list(processes_of(run)))
    assert gone(lambda: not list(Path("/dev/shm").glob(f"{prefix}*")))
    assert gone(lambda: not directory.exists())


def gone(condition: object) -> bool:
    """The sentinel outlives a killed supervisor by a moment."""
    assert callable(condition)
    deadline_s = time.monotonic() + GONE_TIMEOUT_S
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return bool(condition())
