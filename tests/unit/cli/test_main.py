"""The command line: what it finds, and how failures read."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serverless_triton.cli.cluster import ClusterConfig, NodeBudgets, _nodes, load_cluster_config, run_cluster
from serverless_triton.scheduler.config import ConfigError
from serverless_triton.scheduler.gateway.settings import GatewaySettings

COMMAND = [sys.executable, "-c", "from serverless_triton.cli.main import main; main()"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def test_help_lists_every_command_without_importing_any():
    script = (
        "import sys\nfrom serverless_triton.cli.main import cli\ncli.main(['--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'grpc' not in sys.modules"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"add", "demo", "node", "scheduler", "setup", "up"} <= set(finished.stdout.split())


def test_a_typed_error_is_one_line_and_exit_code_1(tmp_path: Path):
    finished = run("add", "http://example.com/model", "--name", "m", "--repository", str(tmp_path))
    assert finished.returncode == 1
    assert finished.stderr.startswith("serverless-triton: http://example.com/model cannot be loaded: http:// would")
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("add",), ("nonsense",), ("add", "x", "--name", "m", "--threads", "0")])
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]):
    assert run(*arguments).returncode == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "node.example"])
def test_a_node_that_others_reach_needs_a_secret(tmp_path: Path, host: str):
    finished = run("node", "--name", "a", "--model-repository", str(tmp_path), "--host", host)
    assert finished.returncode == 2
    assert f"other machines reach {host} and could load and run models; give --secret-file" in finished.stderr


def test_a_node_that_announces_itself_says_where_others_reach_it(tmp_path: Path):
    options = ("--host", "0.0.0.0", "--secret-file", str(tmp_path / "s"), "--scheduler", "s:8004")
    finished = run("node", "--name", "a", "--model-repository", str(tmp_path), *options)
    assert finished.returncode == 2
    assert "no scheduler reaches a machine as 0.0.0.0; give --announced-host" in finished.stderr


def test_add_prints_one_json_object_a_model(tmp_path: Path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text('{"n_layer": 1, "n_head": 1, "n_embd": 8}')
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "c" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))

    finished = run(
        "add", str(tmp_path / "c"), "--name", "a", "--name", "b", "--repository", str(tmp_path / "r"), "--json"
    )

    assert [json.loads(line)["name"] for line in finished.stdout.splitlines()] == ["a", "b"]
    assert (tmp_path / "r" / "b" / "config.pbtxt").is_file()


def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = ClusterConfig(model_repository=tmp_path, gateway=GatewaySettings(http_port=port))
        with pytest.raises(ConfigError, match=rf"gateway\.http_port: 127\.0\.0\.1:{port}: .*choose another"):
            run_cluster(config, Path("/nowhere"), print)


def test_a_model_repository_that_is_not_there_is_said_before_anything_starts(tmp_path: Path):
    with pytest.raises(ConfigError, match="missing is no directory"):
        run_cluster(ClusterConfig(model_repository=tmp_path / "missing"), Path("/nowhere"), print)


def test_servers_share_what_one_store_would_take_by_itself(tmp_path: Path):
    one, four = (_nodes(ClusterConfig(model_repository=tmp_path, servers=servers)) for servers in (1, 4))

    assert one[0].dram_bytes == pytest.approx(4 * (four[0].dram_bytes or 0), rel=0.5)  # what is free changes meanwhile


def test_servers_get_the_budget_that_is_configured(tmp_path: Path):
    config = ClusterConfig(model_repository=tmp_path, node=NodeBudgets(dram_bytes=5, pages="4k", prefault=False))

    assert [(node.dram_bytes, node.pages, node.prefault) for node in _nodes(config)] == [(5, "4k", False)] * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("servers: 2", r"configuration\.model_repository: is missing"),
        ("- a", "must be a mapping"),
        ("a: [", "cluster.yaml"),
        ("model_repository: /m\nservres: 2", r"configuration\.servres: is unknown"),
        ("model_repository: /m\nnode: {pages: 1g}", r"configuration\.node\.pages: is '1g'; give one of auto, hugetlb"),
        ("model_repository: /m\nnode: {prefault: 1}", r"configuration\.node\.prefault: is 1; give true or false"),
        ("model_repository: /m\nnode: {devices: gpu}", r"configuration\.node\.devices: devices are 'gpu'; give cpu"),
        ("model_repository: /m\nnode: {dram_bytes: x}", r"configuration\.node\.dram_bytes: is 'x'; give"),
    ],
)
def test_a_cluster_file_that_is_wrong_is_named_with_its_path(text: str, words: str, tmp_path: Path):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_cluster_config(file, {})
