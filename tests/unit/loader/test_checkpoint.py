import json
from pathlib import Path

import pytest
import torch

from serverless_triton.loader import (
    Checkpoint,
    CheckpointIndexInvalid,
    CheckpointNotFound,
    CheckpointUnreadable,
    UnsafeCheckpoint,
    load_file,
)


def write_index(directory: Path, *names: object) -> None:
    index = {"weight_map": {f"tensor{i}": name for i, name in enumerate(names)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def names_of(checkpoint: Checkpoint) -> list[str]:
    return [file.name for file in checkpoint.files]


def test_a_single_file_is_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "any.safetensors").write_bytes(b"12345")

    checkpoint = Checkpoint.open(tmp_path / "any.safetensors")

    assert names_of(checkpoint) == ["any.safetensors"]
    assert checkpoint.total_bytes == 5
    assert checkpoint.path == str(tmp_path.resolve() / "any.safetensors")


def test_a_directory_prefers_the_single_file_over_the_index(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    write_index(tmp_path, "missing.safetensors")

    assert names_of(Checkpoint.open(tmp_path)) == ["model.safetensors"]


def test_shards_come_sorted_and_once_each(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors", "unnamed.safetensors"):
        (tmp_path / name).write_bytes(b"123")
    write_index(tmp_path, "b.safetensors", "a.safetensors", "b.safetensors")

    checkpoint = Checkpoint.open(tmp_path)

    assert names_of(checkpoint) == ["a.safetensors", "b.safetensors"]
    assert checkpoint.total_bytes == 6


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "x/a.safetensors", "/a.safetensors", "..", "a\\b.safetensors", "a\0.safetensors", "a.bin", 3],
)
def test_an_index_may_only_name_files_beside_it(tmp_path: Path, name: object) -> None:
    write_index(tmp_path, name)

    with pytest.raises(CheckpointIndexInvalid, match=r"model\.safetensors\.index\.json"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "[" * 100_000, "\udcff"])
def test_a_malformed_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(CheckpointIndexInvalid):
        Checkpoint.open(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_index(tmp_path, "a.safetensors")

    with pytest.raises(CheckpointNotFound, match=r"a\.safetensors"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("place", ["nowhere", "nowhere/model.safetensors"])
def test_a_missing_checkpoint_is_named(tmp_path: Path, place: str) -> None:
    with pytest.raises(CheckpointNotFound, match="nowhere"):
        Checkpoint.open(tmp_path / place)


def test_links_of_a_cache_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / "1234").write_bytes(b"12345")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/1234")

    file = Checkpoint.open(tmp_path / "snapshot" / "model.safetensors").files[0]

    assert file.name == "model.safetensors"
    assert file.real_path == str((tmp_path / "blobs" / "1234").resolve())
    assert file.bytes == 5


def test_a_directory_reached_by_another_name_is_the_same_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "model.safetensors").write_bytes(b"")
    (tmp_path / "current").symlink_to("v1")

    assert Checkpoint.open(tmp_path / "current") == Checkpoint.open(tmp_path / "v1" / ".." / "v1")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_refused_with_advice(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")

    with pytest.raises(UnsafeCheckpoint, match=rf"{name}.*save_pretrained"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("suffix", [".bin", ".pt"])
def test_a_single_pickle_file_becomes_one_that_loads_as_its_refusal_says(tmp_path: Path, suffix: str) -> None:
    source, target = tmp_path / f"weights{suffix}", tmp_path / "weights.safetensors"
    torch.save({"a": torch.arange(3)}, source)

    with pytest.raises(UnsafeCheckpoint) as refused:
        Checkpoint.open(source)
    advice = str(refused.value).split("`")[1]
    exec(advice, {"SOURCE": source, "TARGET": target})

    assert load_file(target)["a"].tolist() == [0, 1, 2]


def test_several_files_without_an_index_are_ambiguous(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")

    with pytest.raises(CheckpointIndexInvalid, match="name one of them"):
        Checkpoint.open(tmp_path)


def test_an_empty_directory_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"no \.safetensors file"):
        Checkpoint.open(tmp_path)


def test_a_loop_of_links_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")

    with pytest.raises(CheckpointUnreadable, match=r"model\.safetensors"):
        Checkpoint.open(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "a" * 5000])
def test_an_impossible_path_is_unreadable(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointUnreadable):
        Checkpoint.open(tmp_path / name)
