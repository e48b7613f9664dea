"""load_file against the official reader, and against files that are wrong."""

import json
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as official_load_file
from safetensors.torch import save_file

from serverless_triton.loader import (
    CheckpointIndexInvalid,
    CheckpointTruncated,
    CheckpointUnreadable,
    LoaderError,
    NotSafetensors,
    UnsupportedDtype,
    load_file,
)
from serverless_triton.loader.tensors import TORCH_NAMES

WriteFile = Callable[..., Path]
# 24 bytes hold a whole number of elements of every dtype.
DATA = bytes(range(24))
TENSOR = {"dtype": "U8", "shape": [24], "data_offsets": [0, 24]}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert raw(ours[name]) == raw(tensor), name


def raw(tensor: torch.Tensor) -> list[int]:
    values: list[int] = tensor.reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []
    return values


def elements_of(dtype: str) -> int:
    torch_dtype = getattr(torch, TORCH_NAMES[dtype])
    return len(DATA) // torch_dtype.itemsize * (2 if dtype == "F4" else 1)


@pytest.mark.parametrize("dtype", [name for name, torch_name in TORCH_NAMES.items() if hasattr(torch, torch_name)])
def test_every_dtype_reads_as_the_official_reader_reads_it(write_file: WriteFile, dtype: str) -> None:
    # Bools other than 0 and 1 are undefined behaviour in torch itself.
    data = bytes(byte % 2 for byte in DATA) if dtype == "BOOL" else DATA
    path = write_file({"a": {"dtype": dtype, "shape": [1, elements_of(dtype)], "data_offsets": [0, 24]}}, data)

    assert_same(load_file(path), official_load_file(path))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "I64", "F8_E4M3"])
def test_scalars_and_empty_tensors_keep_their_shapes(write_file: WriteFile, dtype: str) -> None:
    size = getattr(torch, TORCH_NAMES[dtype]).itemsize
    header = {
        "empty": {"dtype": dtype, "shape": [3, 0, 5], "data_offsets": [0, 0]},
        "scalar": {"dtype": dtype, "shape": [], "data_offsets": [0, size]},
        "zero": {"dtype": dtype, "shape": [0], "data_offsets": [size, size]},
    }
    path = write_file(header, DATA[:size])

    assert_same(load_file(path), official_load_file(path))


@pytest.mark.parametrize("shift", range(8))
def test_misaligned_tensors_are_copied_to_where_torch_can_use_them(write_file: WriteFile, shift: int) -> None:
    header = json.dumps({"a": {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}}).encode()
    path = write_file(header.ljust(128 + shift), DATA)

    ours = load_file(path)

    assert ours["a"].data_ptr() % 8 == 0
    assert_same(ours, official_load_file(path))


def test_a_file_without_tensors_is_valid(write_file: WriteFile) -> None:
    assert load_file(write_file({"__metadata__": {"format": "pt"}})) == {}


def test_a_cold_file_reads_as_a_cached_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(3_000_000), "b": torch.rand(7, 9).to(torch.bfloat16)}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cold = load_file(path)

    assert_same(cold, official_load_file(path))
    assert_same(cold, load_file(path))


def test_tensors_are_private(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(5000)}, path)
    before = path.read_bytes()

    first = load_file(path)
    first["a"].fill_(7)

    assert path.read_bytes() == before
    assert load_file(path)["a"].sum() == 0


def test_tensors_outlive_the_file_and_each_other(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(5000), "b": torch.zeros(5000)}, path)

    kept = load_file(path)["a"]
    path.unlink()

    assert kept.sum() == 5000


def test_nothing_is_said_about_buffers(write_file: WriteFile) -> None:
    path = write_file({"a": TENSOR}, DATA)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_file(path)


def test_shards_become_one_dictionary(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    assert_same(load_file(tmp_path), {"a": torch.ones(3), "b": torch.zeros(2)})


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("1.safetensors", "2.safetensors"):
        save_file({"a": torch.ones(3)}, tmp_path / name)
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(CheckpointIndexInvalid, match=r"'a'.*2\.safetensors"):
        load_file(tmp_path)


@pytest.mark.parametrize("cut", range(8 + 64 + 24))
def test_a_file_cut_off_anywhere_names_itself(write_file: WriteFile, cut: int) -> None:
    path = write_file(json.dumps({"a": TENSOR}).encode().ljust(64), DATA)
    path.write_bytes(path.read_bytes()[:cut])

    with pytest.raises(CheckpointTruncated, match=str(path)):
        load_file(path)


HOSTILE_HEADERS: dict[str, Any] = {
    "overlap": {"a": TENSOR, "b": {"dtype": "U8", "shape": [20], "data_offsets": [4, 24]}},
    "hole at the start": {"a": {"dtype": "U8", "shape": [20], "data_offsets": [4, 24]}},
    "hole inside": {
        "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        "b": {"dtype": "U8", "shape": [16], "data_offsets": [8, 24]},
    },
    "bytes after the last tensor": {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}},
    "element count overflows": {"a": {"dtype": "U8", "shape": [2**40, 2**40], "data_offsets": [0, 24]}},
    "byte count overflows": {"a": {"dtype": "F64", "shape": [2**61], "data_offsets": [0, 24]}},
    "size does not fit the shape": {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 24]}},
    "offsets swapped": {"a": {"dtype": "U8", "shape": [24], "data_offsets": [24, 0]}},
    "unknown dtype": {"a": {"dtype": "F128", "shape": [24], "data_offsets": [0, 24]}},
    "negative dimension": {"a": {"dtype": "U8", "shape": [-24], "data_offsets": [0, 24]}},
    "fractional dimension": {"a": {"dtype": "U8", "shape": [24.0], "data_offsets": [0, 24]}},
    "missing field": {"a": {"dtype": "U8", "shape": [24]}},
    "metadata is no text": {"__metadata__": {"a": 1}, "a": TENSOR},
    "not an object": [TENSOR],
    "tensor is a number": {"a": 1},
}
HOSTILE_BYTES = {
    "duplicate name": b'{"a":%b,"a":%b}' % ((json.dumps(TENSOR).encode(),) * 2),
    "deep nesting": b'{"a":{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
    "not UTF-8": b'{"\xff":1}',
    "not JSON": b"tensor",
    "empty": b"",
}


HOSTILE = HOSTILE_HEADERS | HOSTILE_BYTES


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_with_the_file_s_name(write_file: WriteFile, name: str) -> None:
    path = write_file(HOSTILE[name], DATA)

    with pytest.raises(NotSafetensors, match=str(path)):
        load_file(path)


@pytest.mark.parametrize("length", [100_000_001, 2**32, 2**63, 2**64 - 8, 2**64 - 1])
def test_an_absurd_header_length_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + DATA)

    with pytest.raises(NotSafetensors, match=str(length)):
        load_file(path)


def test_an_offset_past_the_end_is_a_truncation(write_file: WriteFile) -> None:
    path = write_file({"a": {"dtype": "U8", "shape": [2**60], "data_offsets": [0, 2**60]}}, DATA)

    with pytest.raises(CheckpointTruncated):
        load_file(path)


@pytest.mark.parametrize("shape", [[0, 2**63], [0, 2**62, 4]])
def test_an_empty_tensor_of_impossible_shape_is_refused(write_file: WriteFile, shape: list[int]) -> None:
    path = write_file({"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, 0]}})

    with pytest.raises(NotSafetensors, match="'a'"):
        load_file(path)


@pytest.mark.parametrize(("dtype", "shape"), [("F6_E2M3", [32]), ("F6_E3M2", [32]), ("F4", [16, 3])])
def test_what_torch_cannot_express_is_said_so(write_file: WriteFile, dtype: str, shape: list[int]) -> None:
    path = write_file({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, 24]}}, DATA)

    with pytest.raises(UnsupportedDtype, match=f"'a'.*{dtype}"):
        load_file(path)


def test_a_directory_in_the_file_s_place_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()

    with pytest.raises(LoaderError):
        load_file(tmp_path / "x.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_unreadable(write_file: WriteFile) -> None:
    path = write_file({"a": TENSOR}, DATA)
    path.chmod(0)

    with pytest.raises(CheckpointUnreadable, match=str(path)):
        load_file(path)
