"""The headers of a checkpoint's files, checked together before any of their data is read."""

from __future__ import annotations

from collections.abc import Iterable

from . import _core
from .errors import CheckpointIndexInvalid


def check_indices(files: Iterable[_core.FileImage]) -> None:
    """Reads and checks every header.

    Raises NotSafetensors, CheckpointTruncated, or CheckpointIndexInvalid where two shards hold a tensor of one name.
    """
    homes: dict[str, str] = {}
    for file in files:
        for tensor in _core.read_index(file).tensors:
            if homes.setdefault(tensor.name, file.path) != file.path:
                raise CheckpointIndexInvalid(
                    f"tensor {tensor.name!r} is in both {homes[tensor.name]} and {file.path}; download the shards again"
                )
