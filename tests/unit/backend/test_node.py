from pathlib import Path
from typing import Any

import pytest

from serverless_triton.backend.node import NodeConfig, _store

SOCKET = Path("/run/store")


def store_arguments(**options: Any) -> list[str]:
    ports = {"http_port": 1, "grpc_port": 2, "metrics_port": 3, "agent_port": 4}
    config = NodeConfig(name="a", model_repository=Path("/models"), **ports, **options)
    return list(_store(config, SOCKET).command[3:])


def test_a_store_that_is_told_nothing_decides_by_itself() -> None:
    assert store_arguments() == ["--socket", "/run/store", "--pages", "auto"]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"dram_bytes": 5}, ["--dram-bytes", "5"]),
        ({"prefault": False}, ["--no-prefault"]),
        ({"ssd_bytes_per_second": 7}, ["--ssd-bytes-per-second", "7"]),
    ],
)
def test_what_a_node_is_told_reaches_its_store(options: dict[str, Any], arguments: list[str]) -> None:
    assert store_arguments(pages="4k", **options) == ["--socket", "/run/store", "--pages", "4k", *arguments]
