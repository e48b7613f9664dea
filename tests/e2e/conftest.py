"""Real clusters for the end-to-end tests. Each keeps its own ports, run directory and /dev/shm prefix."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_triton.backend.model_repository import EngineLimits, add_model
from serverless_triton.cli.local_cluster import LocalCluster

# A replica's KV cache at these limits and its weights, stored in bfloat16; a device that holds one but not two of them.
LIMITS = EngineLimits(dtype="float32", mode="fast", max_sequence_tokens=512, max_streams=4)
REPLICA_BYTES = 2 * 30 * 3 * 64 * 4 * 512 * 4 + 134_515_008 * 4
ROOM_FOR_ONE = REPLICA_BYTES * 3 // 2
# Of each server's store: a few copies of the demo model.
DRAM_BYTES = 1 << 30
NAMES = ("alpha", "beta", "gamma", "delta")


@pytest.fixture(scope="session")
def repository(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four models, and three that cannot be loaded. float32: a resumed stream is then equal to an uninterrupted one."""
    root = tmp_path_factory.mktemp("models")
    for name in NAMES:
        add_model(root, name, demo_model, limits=LIMITS)
    for name in ("truncated", "vanished", "garbled"):
        checkpoint = shutil.copytree(demo_model, tmp_path_factory.mktemp("checkpoints") / name)
        add_model(root, name, checkpoint, limits=LIMITS)
    weights = Path(tmp_path_factory.getbasetemp())
    truncated = next(weights.glob("checkpoints*/truncated/model.safetensors"))
    with truncated.open("r+b") as file:
        file.truncate(truncated.stat().st_size // 2)
    garbled = next(weights.glob("checkpoints*/garbled/model.safetensors"))
    garbled.write_bytes(random.Random(1).randbytes(1_000_000))
    shutil.rmtree(next(weights.glob("checkpoints*/vanished")))
    return root


@pytest.fixture(scope="module")
def cluster(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two servers with room for one replica each."""
    folder = tmp_path_factory.mktemp("cluster")
    with LocalCluster(folder, repository, device_memory_bytes=ROOM_FOR_ONE, dram_bytes=DRAM_BYTES) as running:
        yield running
