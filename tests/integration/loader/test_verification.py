"""A real daemon over files that are really broken."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as official_load_file

from serverless_triton.loader import (
    CheckpointCorrupted,
    CheckpointTruncated,
    ChunkHashesInvalid,
    Store,
    hash_checkpoint,
)

CHUNK_BYTES = 8 << 20


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """Three chunks, hashed."""
    directory = make_checkpoint(megabytes=20)
    hash_checkpoint(directory)
    return directory


def shard_of(directory: Path) -> Path:
    return directory / "model.safetensors"


def flip(directory: Path, offset: int) -> None:
    """Changes one bit and hides it from size and modification time, as a failing disk does."""
    shard = shard_of(directory)
    before = shard.stat()
    with shard.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_load_is_verified_where_there_are_hashes(
    store: Store, checkpoint: Path, make_checkpoint: Callable[..., Path]
) -> None:
    first, again = store.attach(checkpoint).receipt, store.attach(checkpoint).receipt

    assert (first.verified, again.tier, again.verified) == (True, "dram", True)
    assert not store.attach(make_checkpoint("plain")).receipt.verified


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_one_wrong_byte_in_any_chunk_is_found_and_nothing_is_attached(
    store: Store, checkpoint: Path, make_checkpoint: Callable[..., Path], chunk: int
) -> None:
    offset = chunk * CHUNK_BYTES + 4096
    flip(checkpoint, offset)
    with pytest.raises(CheckpointCorrupted, match=rf"{shard_of(checkpoint)}: chunk {chunk} .*from (ssd|page_cache)"):
        store.attach(checkpoint)

    status = store.status()
    assert (status.images, status.used_bytes, status.queue_depth) == ((), 0, 0)
    assert store.attach(make_checkpoint("next")).receipt.bytes > 0
    flip(checkpoint, offset)
    attachment = store.attach(checkpoint)
    assert torch.equal(attachment.tensors["weight"], official_load_file(shard_of(checkpoint))["weight"])


def test_a_truncated_file_is_said_to_be_of_another_size(store: Store, checkpoint: Path) -> None:
    os.truncate(shard_of(checkpoint), CHUNK_BYTES)

    with pytest.raises(ChunkHashesInvalid, match=f"is for a file of .*{CHUNK_BYTES}"):
        store.attach(checkpoint)


def test_stale_hashes_are_an_error_until_they_are_renewed(
    store: Store, checkpoint: Path, make_checkpoint: Callable[..., Path]
) -> None:
    make_checkpoint(checkpoint.name, megabytes=1)
    with pytest.raises(ChunkHashesInvalid, match="serverless-triton store hash --force"):
        store.attach(checkpoint)

    hash_checkpoint(checkpoint, force=True)
    assert store.attach(checkpoint).receipt.verified


def test_a_store_told_not_to_verify_takes_the_bytes_as_they_are(
    start_daemon: Callable[..., Any], checkpoint: Path
) -> None:
    flip(checkpoint, CHUNK_BYTES)
    with start_daemon("--no-verify").connect() as store:
        attachment = store.attach(checkpoint)
        assert not attachment.receipt.verified
        assert torch.equal(attachment.tensors["weight"], official_load_file(shard_of(checkpoint))["weight"])

        os.truncate(shard_of(checkpoint), CHUNK_BYTES)
        with pytest.raises(CheckpointTruncated):
            store.attach(checkpoint)
