"""What load_file can be asked besides: some tensors only, verification or none, progress."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as official_load_file
from safetensors.torch import save_file

from serverless_triton.loader import (
    CheckpointCorrupted,
    CheckpointNotFound,
    ChunkHashesInvalid,
    DeviceUnavailable,
    RemoteUrlRefused,
    TensorNotFound,
    TensorSlice,
    hash_checkpoint,
    load_file,
    load_slices,
)

CHUNK_BYTES = 8 << 20
# Three tensors of a chunk and more each, so that no two lie in the same chunks only.
SHAPES = {"a": (3 << 20,), "b": (4, 1 << 20), "c": (5 << 19,)}


@pytest.fixture(params=["cold", "cached"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({name: torch.rand(shape) for name, shape in SHAPES.items()}, path)
    hash_checkpoint(path)
    if request.param == "cold":
        make_cold(path)
    return path


def make_cold(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def flip_last_byte(path: Path) -> None:
    """As a failing disk does: size and modification time stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def ends_of(path: Path) -> list[str]:
    """Names in file order."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sorted(header, key=lambda name: header[name]["data_offsets"][0])


def test_names_or_a_predicate_choose_tensors(path: Path) -> None:
    official = official_load_file(path)

    named = load_file(path, keys=["c", "a"])
    accepted = load_file(path, keys=lambda name: name != "b")

    for chosen in (named, accepted):
        assert chosen.keys() == {"a", "c"}
        assert all(torch.equal(tensor, official[name]) for name, tensor in chosen.items())
    assert load_file(path, keys=[]) == {}


def test_a_name_that_is_not_there_is_an_error_and_one_string_a_mistake(path: Path) -> None:
    with pytest.raises(TensorNotFound, match=r"model\.safetensors holds no tensor 'd'"):
        load_file(path, keys=["a", "d"])
    with pytest.raises(TypeError, match=r"\['abc'\]"):
        load_file(path, keys="abc")


@pytest.mark.parametrize("verify", [True, False])
def test_no_more_is_read_than_the_wanted_tensors_need(path: Path, verify: bool) -> None:
    told: list[tuple[int, int]] = []
    name = ends_of(path)[0]

    load_file(path, keys=[name], verify=verify, progress=lambda done, total: told.append((done, total)))

    tensor_bytes = 4 * torch.Size(SHAPES[name]).numel()
    assert told[-1][0] == told[-1][1]
    assert tensor_bytes <= told[-1][1] <= tensor_bytes + (2 * CHUNK_BYTES if verify else 3 * 4096)


def test_every_byte_is_verified_unless_told_not_to(path: Path) -> None:
    flip_last_byte(path)

    with pytest.raises(CheckpointCorrupted, match=rf"{path}: chunk 4 .*read from (ssd|page_cache)"):
        load_file(path)
    assert load_file(path, verify=False).keys() == SHAPES.keys()


def test_what_is_not_wanted_is_not_verified_either(path: Path) -> None:
    flip_last_byte(path)
    order = ends_of(path)

    assert load_file(path, keys=order[:1]).keys() == {order[0]}
    with pytest.raises(CheckpointCorrupted, match="chunk 4"):
        load_file(path, keys=order[-1:])


def test_hashes_of_another_version_are_an_error_unless_they_are_not_asked(path: Path) -> None:
    save_file({"a": torch.ones(3)}, path)

    with pytest.raises(ChunkHashesInvalid):
        load_file(path)
    assert load_file(path, verify=False)["a"].tolist() == [1, 1, 1]


def test_progress_ends_at_the_whole_and_may_end_the_load(path: Path) -> None:
    told: list[tuple[int, int]] = []
    load_file(path, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (path.stat().st_size,) * 2
    assert [done for done, _ in told] == sorted(done for done, _ in told)

    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        load_file(path, progress=stop)


def test_a_device_is_where_the_tensors_end_up(path: Path) -> None:
    assert load_file(path, device="meta", keys=["a"])["a"].device.type == "meta"


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "mps", "", 0])
def test_what_is_no_device_is_refused_with_what_would_be(path: Path, device: str) -> None:
    slices = {"a": TensorSlice(0, 0, 2)}
    for load in (load_file, partial(load_file, keys=["a"]), partial(load_slices, slices=slices)):
        with pytest.raises(DeviceUnavailable, match=r"give 'cpu', 'cuda' or 'cuda:N'"):
            load(path, device=device)


@pytest.mark.parametrize("read", [load_file, hash_checkpoint])
def test_a_url_is_sent_to_a_store(read: Callable[[str], object]) -> None:
    with pytest.raises(RemoteUrlRefused, match=r"URLs go through a store: Store\(\.\.\.\)\.attach\(URL\)"):
        read("https://example.com/model?secret=1")


def test_an_empty_path_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CheckpointNotFound, match="path of the checkpoint is empty"):
        load_file("")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch reaches a GPU")
@pytest.mark.parametrize("device", ["cuda", torch.device("cuda:0")])
def test_a_device_that_torch_cannot_reach_is_said(path: Path, device: str | torch.device) -> None:
    slices = {"a": TensorSlice(0, 0, 2)}
    for load in (partial(load_file, keys=["a"]), partial(load_slices, slices=slices)):
        with pytest.raises(DeviceUnavailable, match=r"torch .* reaches no CUDA device .* load with device='cpu'"):
            load(path, device=device)
