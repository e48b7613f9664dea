"""A model whose weights lie behind a URL, through real Triton servers: added, started cold, started from its copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton_grpc

from serverless_triton.backend.model_repository import add_model
from serverless_triton.cli.local_cluster import LocalCluster
from tests.e2e.conftest import DRAM_BYTES, LIMITS
from tests.integration.loader.file_server import FileServer, serving_files

PROMPT = "The three primary colours are"


@pytest.fixture(scope="module")
def server(demo_model: Path) -> Iterator[FileServer]:
    """The demo model's directory over HTTP."""
    with serving_files() as files:
        files.files = {f"/smollm/{path.name}": path.read_bytes() for path in demo_model.iterdir() if path.is_file()}
        yield files


@pytest.fixture(scope="module")
def cluster(server: FileServer, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    repository = folder / "models"
    add_model(repository, "local", demo_model, limits=LIMITS)
    add_model(repository, "remote", server.url("/smollm"), limits=LIMITS)
    options = {"cache_directory": str(folder / "copies"), "cache_bytes": 1 << 30, "dram_bytes": DRAM_BYTES}
    with LocalCluster(folder, repository, servers=1, **options) as running:
        yield running


def test_only_configuration_and_tokenizer_are_brought_into_the_repository(cluster: LocalCluster, server: FileServer):
    names = {path.name for path in (cluster.repository / "remote" / "1").iterdir()}
    assert {"config.json", "tokenizer.json"} <= names
    assert not any(name.endswith(".safetensors") for name in names)


def test_a_model_behind_a_url_answers_as_its_local_twin(cluster: LocalCluster, server: FileServer):
    expected = cluster.generate("local", PROMPT, max_tokens=24)
    heard = cluster.generate("remote", PROMPT, max_tokens=24)
    assert heard.errors == []
    assert heard.text == expected.text
    (receipt,) = cluster.get(f"/v2/cluster/receipts/{heard.stream_id}")["receipts"]
    assert receipt["tier"] == "remote"


def test_its_second_start_asks_the_server_for_no_weights(cluster: LocalCluster, server: FileServer):
    cluster.generate("remote", PROMPT, max_tokens=1)
    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        client.unload_model("remote")
    server.requests.clear()
    heard = cluster.generate("remote", PROMPT, max_tokens=4)
    assert heard.errors == []
    assert all((end or 0) - (begin or 0) <= 8 for begin, end in server.ranges(".safetensors"))
