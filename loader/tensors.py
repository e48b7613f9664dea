"""Memory that holds a safetensors file, seen as torch tensors.

Tensors share the memory and keep it alive; only those that lie unaligned for their dtype are copied. torch is imported
on first use.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._core import Mapping as MemoryMapping
from ._core import TensorEntry, parse_index
from .errors import NotSafetensors, UnsupportedDtype
from .layout import Extent

if TYPE_CHECKING:
    import torch

# The format's name of a dtype to torch's; older torch versions lack some. torch packs two F4 values in an element.
TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F4": "float4_e2m1fn_x2",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}

# warnings.catch_warnings swaps process-wide state.
_warnings_lock = threading.Lock()


def tensors_of(memory: MemoryMapping, extents: Iterable[Extent]) -> dict[str, torch.Tensor]:
    """The tensors of all files that lie in `memory`, by name. No two files may share a name (indices.py sees to it).

    They are writable exactly where the mapping is; torch does not know of read-only tensors, and writing to one kills
    the process with SIGSEGV. Raises CheckpointError.
    """
    tensors: dict[str, torch.Tensor] = {}
    for extent in extents:
        index = parse_index(memory, extent.offset, extent.bytes, extent.file_name)
        tensors |= _views(memory, extent, index.tensors)
    return tensors


def _views(memory: MemoryMapping, extent: Extent, entries: list[TensorEntry]) -> dict[str, torch.Tensor]:
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return {entry.name: _view(memory, extent, entry) for entry in entries}


def _view(memory: MemoryMapping, extent: Extent, entry: TensorEntry) -> torch.Tensor:
    import torch

    dtype = _dtype_of(entry, extent)
    shape = _torch_shape(entry, extent)
    if entry.begin == entry.end:
        return _empty(shape, dtype, entry, extent)
    offset = extent.offset + entry.begin
    if offset % dtype.itemsize == 0:
        count = (entry.end - entry.begin) // dtype.itemsize
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).reshape(shape)
    raw = torch.frombuffer(memory, dtype=torch.uint8, count=entry.end - entry.begin, offset=offset)
    return raw.clone().view(dtype).reshape(shape)


def _dtype_of(entry: TensorEntry, extent: Extent) -> torch.dtype:
    import torch

    dtype = getattr(torch, TORCH_NAMES.get(entry.dtype, ""), None)
    if not isinstance(dtype, torch.dtype):
        raise UnsupportedDtype(
            f"tensor {entry.name!r} of {extent.file_name} has dtype {entry.dtype}, which torch {torch.__version__} "
            "cannot name; install a newer torch or convert the tensor"
        )
    return dtype


def _torch_shape(entry: TensorEntry, extent: Extent) -> tuple[int, ...]:
    if entry.dtype != "F4":
        return entry.shape
    if not entry.shape or entry.shape[-1] % 2:
        raise UnsupportedDtype(
            f"tensor {entry.name!r} of {extent.file_name} has dtype F4 and shape {entry.shape}; torch packs pairs, so "
            "the last dimension must be even"
        )
    return (*entry.shape[:-1], entry.shape[-1] // 2)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, entry: TensorEntry, extent: Extent) -> torch.Tensor:
    import torch

    try:
        return torch.empty(shape, dtype=dtype)
    except (RuntimeError, TypeError) as error:
        raise NotSafetensors(f"tensor {entry.name!r} of {extent.file_name} has the impossible shape {shape}") from error
