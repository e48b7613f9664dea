"""Loading without a store: one process, private tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import _core
from .checkpoint import Checkpoint
from .indices import check_indices
from .layout import lay_out
from .tensors import tensors_of

if TYPE_CHECKING:
    import torch

READ_THREADS = 4


def load_file(path: Path | str, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """All tensors of a .safetensors file or checkpoint directory, by name.

    Same keys, shapes, dtypes and bytes as safetensors.torch.load_file. CPU tensors are private and writable. A file in
    the page cache is mapped copy-on-write: as with every mapped file, it must not be overwritten in place meanwhile.
    Any other file is read past the page cache into memory of this process. Raises CheckpointError, or StoreFull where
    the machine has no memory left.
    """
    files = Checkpoint.open(path).files
    images = [_core.FileImage(file.real_path) for file in files]
    check_indices(images)
    tensors: dict[str, torch.Tensor] = {}
    for file, image in zip(files, images, strict=True):
        layout = lay_out([file])
        tensors |= tensors_of(_private_memory(image, layout.bytes), layout.extents)
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _private_memory(file: _core.FileImage, padded_bytes: int) -> _core.Mapping:
    if file.is_resident():
        return _core.Mapping.copy_on_write(file.fileno(), file.bytes)
    memory = _core.Mapping.anonymous(padded_bytes)
    _core.Reader(threads=READ_THREADS).read([file], memory, [[(0, padded_bytes)]], _core.ReadJob())
    return memory
