from pathlib import Path
from typing import Any

import pytest

from serverless_triton.backend.node import NodeConfig, _agent, _store
from serverless_triton.backend.node_secret import NodeSecret
from serverless_triton.backend.triton_server import _restrictions

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


def test_the_agent_is_told_where_the_secret_is_and_not_the_secret(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    NodeSecret.create(file)
    ports = {"http_port": 1, "grpc_port": 2, "metrics_port": 3, "agent_port": 4}
    config = NodeConfig(name="a", model_repository=Path("/models"), secret_file=file, **ports)
    command = list(_agent(config, dict.fromkeys(("agent", "zygote", "store"), SOCKET), SOCKET).command)
    assert command[-2:] == ["--secret-file", str(file)]
    assert not any(file.read_text().strip() in argument for argument in command)


def test_the_agent_is_told_to_whom_the_node_announces_itself_and_as_what() -> None:
    ports = {"http_port": 1, "grpc_port": 2, "metrics_port": 3, "agent_port": 4}
    told = {"host": "0.0.0.0", "schedulers": ("s:1", "t:1"), "announced_host": "n"}
    config = NodeConfig(name="a", model_repository=Path("/models"), **ports, **told)
    command = list(_agent(config, dict.fromkeys(("agent", "zygote", "store"), SOCKET), SOCKET).command)
    addresses = ["--announced-triton", "n:2", "--announced-agent", "n:4"]
    assert command[-8:] == [*addresses, "--scheduler", "s:1", "--scheduler", "t:1"]


def test_triton_is_told_a_digest_and_restricts_all_but_its_health_over_http(tmp_path: Path) -> None:
    secret = NodeSecret.create(tmp_path / "secret")
    grpc, http = _restrictions(secret)
    assert grpc == (
        "--grpc-restricted-protocol=health,metadata,inference,shared-memory,model-config,model-repository,statistics,"
        f"trace,logging:serverless-triton={secret.for_triton}"
    )
    assert http == grpc.replace("--grpc-restricted-protocol=health,", "--http-restricted-api=")


def test_without_http_nothing_of_it_is_restricted(tmp_path: Path) -> None:
    (grpc,) = _restrictions(NodeSecret.create(tmp_path / "secret"), http=False)
    assert grpc.startswith("--grpc-restricted-protocol=")


def test_without_a_secret_triton_is_as_it_comes() -> None:
    assert _restrictions(None) == ()
