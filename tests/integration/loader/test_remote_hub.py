"""hf:// over a server that answers like the hub and sends files from another host, as the hub does."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_triton.loader import fetch_model_files
from serverless_triton.loader.errors import (
    CheckpointIndexInvalid,
    CheckpointNotFound,
    CheckpointUnreadable,
    RemoteDenied,
    RemoteUnavailable,
    RemoteUnsuitable,
    UnsafeCheckpoint,
)
from tests.integration.loader import file_server as faults
from tests.integration.loader.file_server import FileServer, serving_files
from tests.integration.loader.remote_samples import Tier, checkpoint_bytes, hashes_of, quick, shard_index

COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = "/api/models/org/model/revision/main"
TOKEN = "hf_a-token-that-nobody-else-may-see"
WEIGHTS = checkpoint_bytes(100_000)


@pytest.fixture
def hub() -> Iterator[FileServer]:
    with serving_files() as files:
        yield files


@pytest.fixture
def cdn() -> Iterator[FileServer]:
    with serving_files() as files:
        yield files


def publish(hub: FileServer, cdn: FileServer, files: dict[str, bytes], revision: str = "main") -> None:
    """Weights come from the CDN by a signed link, other files from the hub itself."""
    answer = {"sha": COMMIT, "siblings": [{"rfilename": name} for name in [*files, "onnx/model.onnx"]]}
    hub.files[f"/api/models/org/model/revision/{revision}"] = json.dumps(answer).encode()
    for name, content in files.items():
        path = f"/org/model/resolve/{COMMIT}/{name}"
        hub.files[path] = content
        if name.endswith(".safetensors"):
            cdn.files[f"/blobs/{name}"] = content
            hub.fail(path, faults.redirect(cdn.url(f"/blobs/{name}?Signature=SECRET")), times=1000)


def tier_of(hub: FileServer, directory: Path | None = None, **settings) -> Tier:
    return Tier(directory, settings=quick(hub_endpoint=hub.url(""), hub_token=TOKEN, **settings))


def test_a_model_is_read_at_the_commit_of_its_branch_from_wherever_the_hub_sends(hub: FileServer, cdn: FileServer):
    publish(hub, cdn, {"config.json": b"{}", "model.safetensors": WEIGHTS})
    tier = tier_of(hub)
    checkpoint = tier.opener.open("hf://org/model")
    contents, result = tier.load_checkpoint(checkpoint)
    assert contents == [WEIGHTS]
    assert (checkpoint.path, result.tier) == ("hf://org/model", "remote")
    assert checkpoint.files[0].real_path == f"hf://org/model@{COMMIT}/model.safetensors"


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub: FileServer, cdn: FileServer, caplog):
    publish(hub, cdn, {"model.safetensors": WEIGHTS})
    tier_of(hub).load("hf://org/model")
    assert {request.headers.get("authorization") for request in hub.requests} == {f"Bearer {TOKEN}"}
    assert cdn.requests
    assert not any("authorization" in request.headers for request in cdn.requests)
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(quick(hub_token=TOKEN))


def test_shards_and_their_hashes_are_read_at_the_same_commit(hub: FileServer, cdn: FileServer):
    shards = {
        "model-00001-of-00002.safetensors": WEIGHTS,
        "model-00002-of-00002.safetensors": checkpoint_bytes(500, name="other"),
    }
    sidecars = {f"{name}.chunks.json": hashes_of(content) for name, content in shards.items()}
    publish(hub, cdn, {**shards, **sidecars, "model.safetensors.index.json": shard_index(*shards)})
    contents, result = tier_of(hub).load("hf://org/model")
    assert contents == list(shards.values())
    assert result.verified


def test_a_single_file_of_another_name_is_the_model(hub: FileServer, cdn: FileServer):
    publish(hub, cdn, {"adapter_model.safetensors": WEIGHTS})
    assert tier_of(hub).load("hf://org/model")[0] == [WEIGHTS]


def test_a_revision_may_hold_slashes(hub: FileServer, cdn: FileServer):
    publish(hub, cdn, {"model.safetensors": WEIGHTS}, revision="refs%2Fpr%2F7")
    assert tier_of(hub).load("hf://org/model@refs/pr/7")[0] == [WEIGHTS]


def test_a_cached_commit_needs_no_hub(hub: FileServer, cdn: FileServer, tmp_path: Path):
    publish(hub, cdn, {"model.safetensors": WEIGHTS}, revision=COMMIT)
    tier = tier_of(hub, tmp_path)
    tier.load(f"hf://org/model@{COMMIT}")
    tier.close()
    hub.requests.clear()
    tier = tier_of(hub, tmp_path)
    assert not tier.opener.open(f"hf://org/model@{COMMIT}").is_remote
    assert not hub.requests
    tier.close()


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["pytorch_model.bin"], UnsafeCheckpoint),
        (["config.json"], CheckpointNotFound),
        (["a.safetensors", "b.safetensors"], CheckpointIndexInvalid),
    ],
)
def test_a_repository_without_one_model_says_what_is_wrong(hub: FileServer, cdn: FileServer, names, error):
    publish(hub, cdn, dict.fromkeys(names, WEIGHTS))
    with pytest.raises(error):
        tier_of(hub).opener.open("hf://org/model")


@pytest.mark.parametrize(
    ("code", "error"),
    [(401, RemoteDenied), (404, CheckpointNotFound), (503, RemoteUnavailable), (400, RemoteUnsuitable)],
)
def test_what_the_hub_refuses_is_a_typed_error(hub: FileServer, code: int, error):
    hub.fail(API, faults.status(code), times=1000)
    with pytest.raises(error) as failure:
        tier_of(hub, open_patience_s=0.5).opener.open("hf://org/model")
    assert "what the server says" not in str(failure.value)
    assert TOKEN not in str(failure.value)


@pytest.mark.parametrize(
    "answer", [b"<html>", b"[]", b"{}", b'{"sha": "main", "siblings": []}', b'{"sha": 1, "siblings": {}}']
)
def test_what_does_not_answer_like_a_hub_is_no_hub(hub: FileServer, answer: bytes):
    hub.files[API] = answer
    with pytest.raises(RemoteUnsuitable, match="HF_ENDPOINT"):
        tier_of(hub).opener.open("hf://org/model")


def test_a_hub_that_lists_names_which_lead_elsewhere_is_refused(hub: FileServer):
    hub.files[API] = json.dumps({"sha": COMMIT, "siblings": [{"rfilename": "..\\model.safetensors"}]}).encode()
    with pytest.raises(CheckpointIndexInvalid):
        tier_of(hub).opener.open("hf://org/model")


def test_a_models_small_files_are_fetched_and_its_weights_referred_to_by_commit(
    hub: FileServer, cdn: FileServer, tmp_path: Path
):
    small = {"config.json": b"{}", "tokenizer.json": b"[]"}
    publish(hub, cdn, {**small, "modeling_evil.py": b"import os", "model.safetensors": WEIGHTS})
    settings = quick(hub_endpoint=hub.url(""), hub_token=TOKEN)
    checkpoint = fetch_model_files("hf://org/model", tmp_path, settings)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == small
    assert (checkpoint.path, checkpoint.total_bytes) == (f"hf://org/model@{COMMIT}", len(WEIGHTS))


def test_a_small_file_that_is_not_small_is_refused(hub: FileServer, cdn: FileServer, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("serverless_triton.loader.remote.model_files.MAX_FILE_BYTES", 1000)
    publish(hub, cdn, {"config.json": b" " * 1001, "model.safetensors": WEIGHTS})
    with pytest.raises(CheckpointUnreadable, match=r"config\.json"):
        fetch_model_files("hf://org/model", tmp_path, quick(hub_endpoint=hub.url("")))
