"""Workers that hold more memory than their model needs leave while nobody uses them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_triton.cli.local_cluster import LocalCluster
from tests.e2e.conftest import DRAM_BYTES, ROOM_FOR_ONE


@pytest.fixture
def cluster(repository: Path, tmp_path: Path) -> Iterator[LocalCluster]:
    """One server whose workers may keep nothing that they did not have when their model was loaded."""
    with LocalCluster(
        tmp_path,
        repository,
        servers=1,
        device_memory_bytes=ROOM_FOR_ONE,
        dram_bytes=DRAM_BYTES,
        worker_waste_bytes=0,
    ) as running:
        yield running


def test_a_worker_that_wastes_memory_is_parked_and_its_model_answers_as_before(cluster: LocalCluster) -> None:
    heard = cluster.generate("alpha", "The three primary colours are", max_tokens=8, ignore_eos=True)
    worker = cluster.serving("alpha")["worker_pid"]
    cluster.until(lambda: bool(cluster.parked("alpha")), "its stub is parked")
    cluster.until(lambda: not Path(f"/proc/{worker}").exists(), "its worker has left")
    assert "retired: it holds" in (cluster.logs / "server-0.agent.log").read_text()
    again = cluster.generate("alpha", "The three primary colours are", max_tokens=8, ignore_eos=True)
    assert (again.errors, again.output_ids) == ([], heard.output_ids)
    receipt = cluster.get(f"/v2/cluster/receipts/{again.stream_id}")["receipts"][0]
    assert receipt["kind"] == "parked"
