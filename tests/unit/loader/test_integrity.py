"""Hashes beside a checkpoint, taken and compared without a store."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serverless_triton.loader import (
    CheckpointCorrupted,
    CheckpointTruncated,
    CheckpointUnwritable,
    ChunkHashesInvalid,
    ChunkHashesMissing,
    StoreCancelled,
    _core,
    chunk_hashes,
    hash_checkpoint,
    verify_checkpoint,
)

CHUNK_BYTES = chunk_hashes.CHUNK_BYTES
DATA_BYTES = 2 * CHUNK_BYTES + 1000


@pytest.fixture
def shard(write_file: Any) -> Path:
    """A file of three chunks, the last of them short."""
    header = {"a": {"dtype": "U8", "shape": [DATA_BYTES], "data_offsets": [0, DATA_BYTES]}}
    path: Path = write_file(header, os.urandom(DATA_BYTES))
    return path


def sidecar_of(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.chunks.json")


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_the_grid_is_the_core_s() -> None:
    assert chunk_hashes.CHUNK_BYTES == _core.CHUNK_BYTES


def test_a_sidecar_says_what_it_holds(shard: Path) -> None:
    hash_checkpoint(shard)

    content = json.loads(sidecar_of(shard).read_bytes())
    whole = shard.read_bytes()
    assert content == {
        "version": 1,
        "algorithm": "xxh3-128",
        "chunk_bytes": 8 << 20,
        "file_bytes": len(whole),
        "digests": [_core.xxh3_128(whole[i : i + CHUNK_BYTES]) for i in range(0, len(whole), CHUNK_BYTES)],
    }


@pytest.mark.parametrize("ask", ["file", "directory"])
def test_what_was_hashed_verifies(shard: Path, ask: str) -> None:
    path = shard if ask == "file" else shard.parent
    report = hash_checkpoint(path)

    assert verify_checkpoint(path) == report
    assert (report.files, report.bytes) == (1, shard.stat().st_size)


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_one_flipped_byte_is_found_in_its_chunk(shard: Path, chunk: int) -> None:
    hash_checkpoint(shard)
    flip(shard, chunk * CHUNK_BYTES + 500)

    begin, end = chunk * CHUNK_BYTES, min((chunk + 1) * CHUNK_BYTES, shard.stat().st_size)
    with pytest.raises(CheckpointCorrupted, match=rf"{shard}: chunk {chunk} \(bytes {begin} to {end}\), read from "):
        verify_checkpoint(shard)


def test_hashing_again_with_force_accepts_the_file_as_it_is_now(shard: Path) -> None:
    hash_checkpoint(shard)
    flip(shard, CHUNK_BYTES + 5)
    hash_checkpoint(shard, force=True)

    verify_checkpoint(shard)


def test_hashing_a_damaged_file_again_keeps_the_hashes_that_show_it(shard: Path) -> None:
    hash_checkpoint(shard)
    before = sidecar_of(shard).read_bytes()
    flip(shard, CHUNK_BYTES + 5)

    with pytest.raises(CheckpointCorrupted, match=rf"{shard}: chunk 1 differs from the hash .*--force"):
        hash_checkpoint(shard)
    assert sidecar_of(shard).read_bytes() == before


def test_hashing_one_damaged_shard_again_writes_beside_none(shard: Path, tmp_path: Path) -> None:
    model = tmp_path / "shards"
    model.mkdir()
    first, second = model / "1.safetensors", shard.rename(model / "2.safetensors")
    save_file({"b": torch.zeros(2)}, first)
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"b": "1.safetensors", "a": "2.safetensors"}}')
    hash_checkpoint(second)
    flip(second, 5000)

    with pytest.raises(CheckpointCorrupted):
        hash_checkpoint(model)
    assert not sidecar_of(first).exists()


def test_hashes_of_something_else_are_replaced_by_force_alone(shard: Path) -> None:
    sidecar_of(shard).write_bytes(b"[]")

    with pytest.raises(ChunkHashesInvalid, match=r"store hash --force"):
        hash_checkpoint(shard)
    hash_checkpoint(shard, force=True)

    verify_checkpoint(shard)


def test_without_hashes_there_is_nothing_to_verify_against(shard: Path) -> None:
    with pytest.raises(ChunkHashesMissing, match="store hash"):
        verify_checkpoint(shard)


def test_a_truncated_file_is_not_hashed(shard: Path) -> None:
    os.truncate(shard, CHUNK_BYTES)

    with pytest.raises(CheckpointTruncated):
        hash_checkpoint(shard)
    assert not sidecar_of(shard).exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "version"),
        ({"algorithm": "crc32"}, "algorithm"),
        ({"chunk_bytes": 1}, "chunk_bytes"),
        ({"file_bytes": 5}, "digests do not fit"),
        ({"file_bytes": DATA_BYTES}, "is for a file of"),
        ({"file_bytes": -1}, "no size"),
        ({"file_bytes": True}, "no size"),
        ({"digests": []}, "digests do not fit"),
        ({"digests": ["xyz"]}, "hexadecimal"),
        ({"digests": "abc"}, "hexadecimal"),
    ],
)
def test_a_sidecar_of_something_else_is_refused(shard: Path, change: dict[str, Any], reason: str) -> None:
    hash_checkpoint(shard)
    sidecar = sidecar_of(shard)
    sidecar.write_text(json.dumps(json.loads(sidecar.read_bytes()) | change))

    with pytest.raises(ChunkHashesInvalid, match=rf"{sidecar}.*{reason}.*store hash.*repack"):
        verify_checkpoint(shard)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_a_sidecar_that_is_no_sidecar_is_refused(shard: Path, content: bytes) -> None:
    sidecar_of(shard).write_bytes(content)

    with pytest.raises(ChunkHashesInvalid, match="JSON"):
        verify_checkpoint(shard)


def test_a_sidecar_is_written_whole_or_not_at_all(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CheckpointUnwritable, match="No space left"):
        hash_checkpoint(shard)

    assert [path.name for path in shard.parent.iterdir()] == [shard.name]


def test_progress_ends_at_the_whole(shard: Path) -> None:
    seen: list[tuple[int, int]] = []
    hash_checkpoint(shard, lambda done, total: seen.append((done, total)))

    assert seen[-1] == (shard.stat().st_size, shard.stat().st_size)


def test_progress_that_raises_stops_the_work(shard: Path) -> None:
    hash_checkpoint(shard)

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, StoreCancelled)):
        verify_checkpoint(shard, stop)


def test_linked_files_have_their_hashes_beside_the_link(shard: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "model.safetensors"
    link.symlink_to(shard)
    hash_checkpoint(link.parent)

    assert sidecar_of(link).exists()
    assert not sidecar_of(shard).exists()


def test_digests_of_a_checkpoint_are_those_of_each_of_its_files_or_none(shard: Path) -> None:
    assert chunk_hashes.digests_of(str(shard)) == {}
    hash_checkpoint(shard)
    digests = json.loads(sidecar_of(shard).read_bytes())["digests"]
    assert chunk_hashes.digests_of(str(shard)) == {shard.name: tuple(digests)}


def test_digests_of_a_url_are_not_known_here() -> None:
    assert chunk_hashes.digests_of("https://host/model") == {}
