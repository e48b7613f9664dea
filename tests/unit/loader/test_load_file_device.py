"""load_file() onto a GPU: the bytes of the official reader, from the page cache and past it."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as official_load_file
from safetensors.torch import save_file

from serverless_triton.loader import StoreCancelled, _core, hash_checkpoint, load_file
from serverless_triton.loader.devices import device_of, name_of
from serverless_triton.loader.errors import DeviceUnavailable
from serverless_triton.loader.standalone import _copied, open_files

pytestmark = pytest.mark.usefixtures("cuda_driver")

TENSORS = {
    "weight": torch.randint(0, 255, (9 << 20,), dtype=torch.uint8),
    "half": torch.rand(3, 5).to(torch.bfloat16),
    "odd": torch.randint(0, 2, (7,), dtype=torch.uint8).bool(),
    "after_odd": torch.rand(11, dtype=torch.float64),
    "fp8": torch.rand(8).to(torch.float8_e4m3fn),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4, dtype=torch.int32),
}


@pytest.mark.parametrize("is_cached", [True, False])
def test_tensors_equal_the_official_reader_s(tmp_path: Path, *, is_cached: bool) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    if not is_cached:
        drop_from_page_cache(path)

    tensors = load_file(path, device="cuda:0")

    expected = official_load_file(path)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
        assert bytes_of(tensor) == bytes_of(expected[name])


def test_tensors_are_private_and_writable(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(4)}, path)

    first, second = load_file(path, device="cuda:0"), load_file(path, device="cuda:0")
    first["weight"] += 1

    assert second["weight"].tolist() == [1.0] * 4


def test_a_tensor_off_its_alignment_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}'
    )
    value = torch.tensor([1.5]).numpy().tobytes()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\7" + value)

    assert load_file(path, device="cuda:0")["b"].tolist() == [1.5]


def test_a_device_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(4)}, path)

    with pytest.raises(DeviceUnavailable, match="cuda:99"):
        load_file(path, device="cuda:99")


def test_a_load_from_the_page_cache_that_is_cancelled_copies_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(4)}, path)
    [file] = open_files(path, verify=False)
    job = _core.ReadJob()
    job.cancel()

    with pytest.raises(StoreCancelled):
        _copied(file, device_of(name_of("cuda:0")), job)


def test_progress_counts_comparing_and_copying_of_what_lies_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    hash_checkpoint(path)
    told: list[tuple[int, int]] = []

    load_file(path, device="cuda:0", progress=lambda done, total: told.append((done, total)))

    whole_bytes = 2 * path.stat().st_size
    assert told[-1] == (whole_bytes, whole_bytes)
    assert all(done <= total == whole_bytes for done, total in told)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def drop_from_page_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
