"""LoRA adapters as PEFT writes them, small images beside a large one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as official_load_file
from safetensors.torch import save_file

from serverless_triton.loader import Attachment, ImageLeased, Store, UnsafeCheckpoint

Daemon = Any
MakeAdapter = Callable[[str], Path]

RANK, HIDDEN, LAYERS = 8, 256, 4
BASE_MEGABYTES = 65  # from 64 on an image is a large one


@pytest.fixture
def make_adapter(tmp_path: Path) -> MakeAdapter:
    """make_adapter(name) writes adapter_model.safetensors and adapter_config.json and returns their directory."""

    def make(name: str) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        layers = "base_model.model.model.layers"
        weights = {
            f"{layers}.{layer}.self_attn.{module}.lora_{side}.weight": torch.rand(shape).to(torch.bfloat16)
            for layer in range(LAYERS)
            for module in ("q_proj", "v_proj")
            for side, shape in (("A", (RANK, HIDDEN)), ("B", (HIDDEN, RANK)))
        }
        save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        return directory

    return make


def assert_same(attachment: Attachment, file: Path) -> None:
    theirs = official_load_file(file)
    assert attachment.tensors.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(attachment.tensors[name], tensor), name


def place_of(attachment: Attachment) -> tuple[int, int]:
    """Where its tensors begin and end in memory."""
    tensors = attachment.tensors.values()
    return min(tensor.data_ptr() for tensor in tensors), max(tensor.data_ptr() + tensor.nbytes for tensor in tensors)


def test_adapters_are_attached_beside_their_base_and_leave_it_its_place(
    store: Store, make_checkpoint: Callable[..., Path], make_adapter: MakeAdapter
) -> None:
    base_directory = make_checkpoint("base", BASE_MEGABYTES)
    directories = [make_adapter(f"adapter{i}") for i in range(3)]
    first = store.attach(directories[0])
    base = store.attach(base_directory)
    adapters = [first, *map(store.attach, directories[1:])]

    assert_same(base, base_directory / "model.safetensors")
    for adapter, directory in zip(adapters, directories, strict=True):
        file = directory / "adapter_model.safetensors"
        assert_same(adapter, file)
        assert adapter.receipt.bytes == file.stat().st_size
        # Small images lie at the arena's other end, whichever came first.
        assert place_of(adapter)[0] >= place_of(base)[1]
    assert store.attach(directories[0]).receipt.tier == "dram"


def test_an_adapter_comes_and_goes_without_its_base(
    store: Store, make_checkpoint: Callable[..., Path], make_adapter: MakeAdapter
) -> None:
    base_directory, directory = make_checkpoint("base", BASE_MEGABYTES), make_adapter("adapter")
    base, adapter = store.attach(base_directory), store.attach(directory)
    with pytest.raises(ImageLeased, match=str(directory)):
        store.evict(directory)
    store.release(adapter)

    assert store.evict(directory) == 1
    assert_same(base, base_directory / "model.safetensors")

    adapter = store.attach(directory)
    store.release(base)
    assert store.evict(base_directory) == 1
    assert_same(adapter, directory / "adapter_model.safetensors")
    assert [image.path for image in store.status().images] == [str(directory)]


def test_a_pickled_adapter_is_refused(store: Store, make_adapter: MakeAdapter) -> None:
    directory = make_adapter("adapter")
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")

    with pytest.raises(UnsafeCheckpoint, match=r"adapter_model\.bin"):
        store.attach(directory)
