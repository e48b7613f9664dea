"""The headers of a checkpoint's files, checked together before any of their data is read."""

from __future__ import annotations

from collections.abc import Iterable

from . import _core
from .errors import CheckpointIndexInvalid


def read_indices(files: Iterable[_core.FileImage]) -> list[_core.HeaderIndex]:
    """Reads and checks every header.

    Raises NotSafetensors, CheckpointTruncated, or CheckpointIndexInvalid where two shards hold a tensor of one name.
    """
    indices = [(file.path, _core.read_index(file)) for file in files]
    check_names(indices)
    return [index for _, index in indices]


def check_names(indices: Iterable[tuple[str, _core.HeaderIndex]]) -> None:
    """Raises CheckpointIndexInvalid where two files, by their paths, hold a tensor of one name."""
    homes: dict[str, str] = {}
    for path, index in indices:
        for tensor in index.tensors:
            if homes.setdefault(tensor.name, path) != path:
                raise CheckpointIndexInvalid(
                    f"tensor {tensor.name!r} is in both {homes[tensor.name]} and {path}; download the shards again"
                )
