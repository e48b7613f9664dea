"""Slices of tensors, out of files and out of memory, against torch's slicing of what the official reader returns."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as official_load_file
from safetensors.torch import save_file

from serverless_triton.loader import (
    CheckpointCorrupted,
    NotSafetensors,
    SliceInvalid,
    TensorNotFound,
    TensorSlice,
    hash_checkpoint,
    load_slices,
    take_slices,
)

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

WriteFile = Callable[..., Path]
DTYPES = [torch.bool, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32,
          torch.int32, torch.float64, torch.int64]  # fmt: skip


def random_tensor(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    count = torch.Size(shape).numel() * dtype.itemsize
    values = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
    return (values.view(dtype) if count else torch.empty(0, dtype=dtype)).reshape(shape)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def expected_of(tensor: torch.Tensor, part: TensorSlice | None) -> torch.Tensor:
    if part is None:
        return tensor
    return torch.tensor_split(tensor, part.degree, part.dim)[part.rank]


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, TensorSlice | None]]:
    tensors, slices = {}, {}
    for name in "abcdef"[: draw(st.integers(1, 6))]:
        shape = draw(st.lists(st.integers(0, 9), max_size=4))
        tensors[name] = random_tensor(shape, draw(st.sampled_from(DTYPES)))
        if shape and draw(st.booleans()):
            degree = draw(st.integers(1, 6))
            dim = draw(st.integers(-len(shape), len(shape) - 1))
            slices[name] = TensorSlice(dim, draw(st.integers(0, degree - 1)), degree)
        elif draw(st.booleans()):
            slices[name] = None
    return tensors, slices


@settings(max_examples=150, deadline=None)
@given(checkpoints(), st.booleans())
def test_slices_are_what_torch_would_slice(
    checkpoint: tuple[dict[str, torch.Tensor], dict[str, TensorSlice | None]], is_hashed: bool
) -> None:
    tensors, slices = checkpoint
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        save_file(tensors, path)
        if is_hashed:
            hash_checkpoint(path)
        official = official_load_file(path)
        for ours in (load_slices(path, slices), take_slices(official, slices)):
            assert ours.keys() == slices.keys()
            for name, part in slices.items():
                expected = expected_of(official[name], part)
                assert (ours[name].dtype, ours[name].shape) == (expected.dtype, expected.shape)
                assert raw(ours[name]) == raw(expected)
                assert ours[name].is_contiguous()


@given(st.integers(0, 1000), st.integers(1, 50))
def test_ranks_tile_a_dimension_evenly(size: int, degree: int) -> None:
    bounds = [TensorSlice(0, rank, degree).bounds(size) for rank in range(degree)]

    assert [begin for begin, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == size
    lengths = [end - begin for begin, end in bounds]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Several chunks of 8 MiB, cold: a tall and a wide tensor."""
    path = tmp_path / "model.safetensors"
    save_file({"tall": torch.rand(4096, 1024), "wide": torch.rand(64, 98_304), "norm": torch.rand(512)}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@pytest.mark.parametrize("is_hashed", [False, True])
def test_all_ranks_together_hold_all_of_a_large_file(large: Path, is_hashed: bool) -> None:
    if is_hashed:
        hash_checkpoint(large)
    ranks = [
        load_slices(large, {"tall": TensorSlice(0, rank, 3), "wide": TensorSlice(1, rank, 3), "norm": None})
        for rank in range(3)
    ]

    official = official_load_file(large)
    assert torch.equal(torch.cat([rank["tall"] for rank in ranks]), official["tall"])
    assert torch.equal(torch.cat([rank["wide"] for rank in ranks], dim=1), official["wide"])
    assert all(torch.equal(rank["norm"], official["norm"]) for rank in ranks)


def test_a_slice_of_the_first_dimension_reads_its_own_bytes_only(large: Path) -> None:
    told: list[tuple[int, int]] = []

    load_slices(large, {"tall": TensorSlice(0, 1, 8)}, progress=lambda done, total: told.append((done, total)))

    assert told[-1][0] == told[-1][1] <= (4096 * 1024 * 4) // 8 + 2 * 4096


def test_only_hashed_chunks_that_hold_a_slice_are_verified(large: Path) -> None:
    hash_checkpoint(large)
    before = large.stat()
    with large.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    in_file_order = sorted(header_of(large).items(), key=lambda item: item[1]["data_offsets"])
    first, last = in_file_order[0][0], in_file_order[-1][0]

    load_slices(large, {first: TensorSlice(0, 0, 2)})
    with pytest.raises(CheckpointCorrupted, match="chunk"):
        load_slices(large, {last: TensorSlice(0, 1, 2)})
    load_slices(large, {last: TensorSlice(0, 1, 2)}, verify=False)


def header_of(path: Path) -> dict[str, dict[str, list[int]]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, dict[str, list[int]]] = json.loads(file.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def test_a_corrupted_header_is_found_whatever_slice_is_taken(large: Path) -> None:
    hash_checkpoint(large)
    before = large.stat()
    content = large.read_bytes()
    with large.open("r+b") as file:
        file.write(content[: content.index(b"norm")] + b"mron")
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(CheckpointCorrupted, match="chunk 0"):
        load_slices(large, {"mron": TensorSlice(0, 1, 2)})


def test_shards_are_sliced_as_one_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.arange(10)}, tmp_path / "1.safetensors")
    save_file({"b": torch.arange(12).reshape(3, 4)}, tmp_path / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    ours = load_slices(tmp_path, {"a": TensorSlice(0, 1, 4), "b": TensorSlice(-1, 0, 2)})

    assert ours["a"].tolist() == [3, 4, 5]
    assert ours["b"].tolist() == [[0, 1], [4, 5], [8, 9]]


def test_what_does_not_fit_is_refused_by_name(write_file: WriteFile, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3, 3), "scalar": torch.tensor(1.0)}, path)

    with pytest.raises(SliceInvalid, match=r"'a'.*\(3, 3\).*dimension 2"):
        load_slices(path, {"a": TensorSlice(2, 0, 2)})
    with pytest.raises(SliceInvalid, match="'scalar'"):
        load_slices(path, {"scalar": TensorSlice(0, 0, 2)})
    with pytest.raises(SliceInvalid, match="'a'"):
        take_slices({"a": torch.ones(3, 3)}, {"a": TensorSlice(-3, 0, 2)})
    with pytest.raises(TensorNotFound, match="'b'"):
        load_slices(path, {"a": None, "b": None})
    for rank, degree in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="rank"):
            TensorSlice(0, rank, degree)
    impossible = write_file({"a": {"dtype": "U8", "shape": [0, 2**63], "data_offsets": [0, 0]}}, name="b.safetensors")
    with pytest.raises(NotSafetensors, match="'a'"):
        load_slices(impossible, {"a": TensorSlice(0, 0, 2)})


def test_slices_of_tensors_in_memory_are_views_where_they_can_be() -> None:
    tensor = torch.arange(12).reshape(4, 3)

    ours = take_slices({"a": tensor}, {"a": TensorSlice(0, 1, 2)})["a"]

    assert ours.data_ptr() == tensor[2].data_ptr()
    assert ours.tolist() == [[6, 7, 8], [9, 10, 11]]
