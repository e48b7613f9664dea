"""Any valid file reads as the official reader reads it; any corruption of one is an error or the same tensors."""

import json
import os
import tempfile
from pathlib import Path

import pytest

from serverless_triton.loader import LoaderError, hash_checkpoint, load_file

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file as official_load_file

from .safetensors_files import assert_same, safetensors_files


@settings(max_examples=150, deadline=None)
@given(safetensors_files())
def test_valid_files_read_as_the_official_reader_reads_them(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        path.write_bytes(content)
        assert_same(load_file(path), official_load_file(path))


@settings(max_examples=60, deadline=None)
@given(st.lists(safetensors_files(), min_size=1, max_size=3), st.booleans(), st.booleans())
def test_sharded_hashed_and_cold_files_read_as_the_official_reader_reads_them(
    contents: list[bytes], is_hashed: bool, is_cold: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory, expected = Path(name), {}
        for number, content in enumerate(contents):
            shard = directory / f"{number}.safetensors"
            shard.write_bytes(content)
            tensors = official_load_file(shard)
            if expected.keys() & tensors.keys():
                shard.unlink()
            else:
                expected |= tensors
        names = sorted(shard.name for shard in directory.iterdir())
        index = {"weight_map": {f"tensor {name}": name for name in names}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        if is_hashed:
            hash_checkpoint(directory)
        for shard in directory.iterdir() if is_cold else ():
            with shard.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert_same(load_file(directory), expected)


@settings(max_examples=300, deadline=None)
@given(safetensors_files(), st.data())
def test_corrupted_files_are_errors_or_what_the_official_reader_sees(content: bytes, data: st.DataObject) -> None:
    corrupted = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        corrupted[data.draw(st.integers(0, len(corrupted) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        path.write_bytes(corrupted)
        try:
            ours = load_file(path)
        except LoaderError:
            return
        try:
            theirs = official_load_file(path)
        except SafetensorError as error:
            raise AssertionError("accepted what the official reader refuses") from error
        assert_same(ours, theirs)
