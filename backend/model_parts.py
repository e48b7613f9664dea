"""The parts that a model is mapped to devices by: which of them a tensor belongs to, and what memory each takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from serverless_triton.backend.messages import ModelSpec

if TYPE_CHECKING:
    from serverless_triton.loader._core import TensorEntry

# What the store calls dtypes, by what a model's configuration may ask for instead.
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_EMBEDDING, _LAYERS, _NORM, _HEAD = range(4)


class UnknownParts(ValueError):
    """What a model consists of cannot be told before it is loaded; the message says why."""


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor or module of this name belongs to, None for what stands outside of them."""
    return next((int(piece) for piece in name.split(".") if piece.isdecimal() and len(piece) < 6), None)


def part_of(name: str, layers: int) -> int:
    """0 is the embedding, 1 to `layers` are the layers, then the final norm and the head."""
    from serverless_triton.loader.layer_order import layer_key

    number = layer_of(name)
    if number is not None:
        return 1 + min(number, layers - 1)
    kind = layer_key(name)[0]
    if kind == _EMBEDDING or ".project_in." in name:
        return 0
    return layers + (2 if kind == _HEAD else 1)


def part_bytes(tensors: Iterable[tuple[str, int]], kv_cache_bytes: int) -> list[int]:
    """Bytes of each part for tensors of these names and bytes. Each layer has an equal share of the KV memory.

    A head that is tied to the embedding has no tensor: it takes nothing, and lies where the embedding does.
    Raises UnknownParts for a checkpoint without numbered layers.
    """
    sizes = dict(tensors)
    layers = 1 + max((number for number in map(layer_of, sizes) if number is not None), default=-1)
    if not layers:
        raise UnknownParts("its tensors' names have no layers' numbers")
    parts = [0] + [-(-kv_cache_bytes // layers)] * layers + [0, 0]
    for name, size in sizes.items():
        parts[part_of(name, layers)] += size
    return parts


def read_parts(spec: ModelSpec) -> list[int]:
    """`part_bytes` by the headers of a local checkpoint, in the dtype that the model runs in.

    Raises UnknownParts for a checkpoint that lies elsewhere, and CheckpointError.
    """
    from serverless_triton.loader.checkpoint import is_url

    if is_url(spec.checkpoint):
        raise UnknownParts(f"{spec.checkpoint} does not lie on this node")
    entries = _entries(spec.checkpoint)
    return part_bytes([(entry.name, _bytes(entry, spec.dtype)) for entry in entries], spec.kv_cache_bytes)


def converted_bytes(checkpoint: str, dtype: str) -> int:
    """What the weights of a local checkpoint take in `dtype` which are stored in another: nobody shares those.

    Raises CheckpointError.
    """
    converted = (entry for entry in _entries(checkpoint) if entry.dtype in _FLOATS and entry.dtype != _STORED[dtype])
    return sum(_bytes(entry, dtype) for entry in converted)


def parts_for(spec: ModelSpec, *, weights_on_device: bool) -> list[int]:
    """What a replica needs of its devices' memory. On a CPU weights that run as they are stored lie in the arena.

    A model of unknown parts is one part, for one device. Raises CheckpointError.
    """
    if not weights_on_device:
        return [spec.device_bytes]
    try:
        return read_parts(spec)
    except UnknownParts:
        return [max(spec.checkpoint_bytes, spec.converted_bytes) + spec.kv_cache_bytes]


def _entries(checkpoint: str) -> list[TensorEntry]:
    """What the headers of its files say."""
    from serverless_triton.loader import _core
    from serverless_triton.loader.checkpoint import Checkpoint
    from serverless_triton.loader.indices import read_indices

    files = [_core.FileImage(file.real_path) for file in Checkpoint.open(checkpoint).files]
    return [entry for index in read_indices(files) for entry in index.tensors]


def _bytes(entry: TensorEntry, dtype: str) -> int:
    stored = entry.end - entry.begin
    if dtype not in _ITEM_BYTES or entry.dtype not in _FLOATS:
        return stored
    return stored // _FLOATS[entry.dtype] * _ITEM_BYTES[dtype]
