"""A repacked checkpoint is the same to every reader, lies well for ours, and appears whole or not at all."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from serverless_triton.loader import (
    CheckpointCorrupted,
    CheckpointExists,
    CheckpointTruncated,
    CheckpointUnwritable,
    _core,
    hash_checkpoint,
    load_file,
    repack_checkpoint,
    verify_checkpoint,
)

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file as official_load_file
from safetensors.torch import save_file

DTYPES = [torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]
NAMES = ["model.embed_tokens.weight", "model.layers.0.w", "model.layers.2.w", "model.layers.10.w", "lm_head.weight"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two shards, an index, a config, a tokenizer and things that are not part of the checkpoint."""
    directory = tmp_path / "model"
    directory.mkdir()
    shards = {"a.safetensors": NAMES[:3], "b.safetensors": NAMES[3:]}
    for shard, names in shards.items():
        save_file({name: torch.rand(5, 7) for name in names}, directory / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.model").write_bytes(b"tokens")
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    (directory / "original").mkdir()
    return directory


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        and torch.equal(ours[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        for name, tensor in theirs.items()
    )


def header_of(path: Path) -> tuple[int, dict[str, object]]:
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    return 8 + length, json.loads(content[8 : 8 + length])


def test_every_file_of_a_model_arrives_and_verifies(model: Path, tmp_path: Path) -> None:
    report = repack_checkpoint(model, tmp_path / "packed")

    target = tmp_path / "packed"
    assert {path.name for path in target.iterdir()} == {
        "a.safetensors",
        "a.safetensors.chunks.json",
        "b.safetensors",
        "b.safetensors.chunks.json",
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.model",
    }
    assert report.copied == ("config.json", "model.safetensors.index.json", "tokenizer.model")
    assert verify_checkpoint(target).bytes == report.bytes
    assert same(load_file(target), load_file(model))
    for shard in ("a.safetensors", "b.safetensors"):
        assert same(official_load_file(target / shard), official_load_file(model / shard))


def test_data_begin_on_a_page_in_layer_order_with_the_metadata_kept(tmp_path: Path) -> None:
    metadata = {"format": "pt", "é": "\N{SNOWMAN}"}
    source = tmp_path / "model.safetensors"
    save_file({name: torch.rand(2, 4) for name in reversed(NAMES)}, source, metadata=metadata)

    report = repack_checkpoint(source, tmp_path / "packed")

    data_begin, header = header_of(tmp_path / "packed" / "model.safetensors")
    assert data_begin % 4096 == 0
    assert header.pop("__metadata__") == metadata
    assert list(header) == NAMES
    assert (report.files, report.copied) == (1, ())


def test_tensors_of_odd_sizes_leave_no_other_unaligned(tmp_path: Path) -> None:
    tensors = {
        "layers.0.odd": torch.zeros(3, dtype=torch.uint8),
        "layers.0.w": torch.zeros(2, dtype=torch.float64),
        "layers.1.half": torch.zeros(3, dtype=torch.float16),
        "layers.1.single": torch.zeros(3, dtype=torch.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    repack_checkpoint(tmp_path / "model.safetensors", tmp_path / "packed")

    index = _core.read_index(_core.FileImage(str(tmp_path / "packed" / "model.safetensors")))
    assert [tensor.name for tensor in index.tensors] == [
        "layers.0.w",
        "layers.1.single",
        "layers.1.half",
        "layers.0.odd",
    ]
    assert all(tensor.begin % tensors[tensor.name].itemsize == 0 for tensor in index.tensors)


def test_a_repacked_model_repacks_to_itself(model: Path, tmp_path: Path) -> None:
    repack_checkpoint(model, tmp_path / "once")
    repack_checkpoint(tmp_path / "once", tmp_path / "twice")

    for path in (tmp_path / "once").iterdir():
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_file_reads_the_same_with_the_official_reader(data: st.DataObject) -> None:
    tensors = {}
    for name in data.draw(st.lists(st.sampled_from([*NAMES, "x", "é.3", '"', "a.01", "a.1"]), unique=True)):
        shape = data.draw(st.lists(st.integers(0, 5), max_size=3))
        tensors[name] = torch.randint(0, 2, shape).to(data.draw(st.sampled_from(DTYPES)))
    # Not empty: of no tensors and empty metadata the official writer makes a file that the official reader refuses.
    metadata = data.draw(st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), min_size=1, max_size=2))
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory) / "model.safetensors", Path(directory) / "packed"
        save_file(tensors, source, metadata=metadata)
        repack_checkpoint(source, target)

        assert same(official_load_file(target / source.name), tensors)
        assert same(load_file(target), tensors)
        with safe_open(source, "pt") as theirs, safe_open(target / source.name, "pt") as ours:
            assert ours.metadata() == theirs.metadata()
        assert header_of(target / source.name)[0] % 4096 == 0


def test_nothing_is_overwritten(model: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "precious").write_text("")

    with pytest.raises(CheckpointExists, match="packed already exists"):
        repack_checkpoint(model, tmp_path / "packed")
    with pytest.raises(CheckpointExists):
        repack_checkpoint(model, model)
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["precious"]


def test_a_broken_source_leaves_no_target(model: Path, tmp_path: Path) -> None:
    hash_checkpoint(model)
    content = bytearray((model / "b.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "b.safetensors").write_bytes(content)

    with pytest.raises(CheckpointCorrupted, match=r"b\.safetensors"):
        repack_checkpoint(model, tmp_path / "packed")
    os.truncate(model / "b.safetensors", 300)
    with pytest.raises(CheckpointTruncated):
        repack_checkpoint(model, tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_no_target(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    for owner, name in ((os, "fsync"), (shutil, "copyfile")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, no_space)
            with pytest.raises(CheckpointUnwritable, match="No space left"):
                repack_checkpoint(model, tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_killed_repack_leaves_no_target_and_the_next_one_clears_up(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"
    code = (
        "import os, signal, sys\nfrom serverless_triton.loader import repack as room\n"
        "room._copy_companions = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "room.repack_checkpoint(sys.argv[1], sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model), str(target)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == [".packed.partial", "model"]

    repack_checkpoint(model, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "packed"]
    verify_checkpoint(target)


def test_two_at_once_do_not_write_into_each_other(model: Path, tmp_path: Path) -> None:
    refused: list[CheckpointExists] = []

    def again(_done: int, _total: int) -> None:
        with pytest.raises(CheckpointExists, match="another repack") as caught:
            repack_checkpoint(model, tmp_path / "packed")
        refused.append(caught.value)

    repack_checkpoint(model, tmp_path / "packed", again)

    assert refused
    verify_checkpoint(tmp_path / "packed")


def test_progress_ends_at_the_whole(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    repack_checkpoint(model, tmp_path / "packed", lambda done, total: seen.append((done, total)))

    assert seen[-1][0] == seen[-1][1] > 0


def test_a_directory_that_is_missing_above_the_target_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnwritable, match=f"there is no directory {tmp_path / 'missing'}; create it"):
        repack_checkpoint(model, tmp_path / "missing" / "packed")
