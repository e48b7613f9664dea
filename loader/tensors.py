"""Memory that holds a safetensors file, seen as torch tensors.

Tensors share the memory and keep it alive; only those that lie unaligned for their dtype are copied. torch is imported
on first use.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ._core import TensorEntry, parse_index
from .errors import NotSafetensors, UnsupportedDtype

if TYPE_CHECKING:
    import torch
    from _typeshed import ReadableBuffer

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


def everything(_name: str) -> bool:
    """Every tensor is wanted."""
    return True


def tensors_of(
    memory: ReadableBuffer, file_bytes: int, file_name: str, is_wanted: Callable[[str], bool] = everything
) -> dict[str, torch.Tensor]:
    """The wanted tensors, by name, of the file whose `file_bytes` `memory` begins with.

    The bytes of the others need not be there. Tensors are writable exactly where the memory is; torch does not know of
    read-only tensors, and writing to one kills the process with SIGSEGV. Raises CheckpointError.
    """
    entries = parse_index(memory, 0, file_bytes, file_name).tensors
    with _quiet():
        return {entry.name: _view(memory, file_name, entry) for entry in entries if is_wanted(entry.name)}


def typed_shape(entry: TensorEntry, file_name: str) -> tuple[torch.dtype, tuple[int, ...]]:
    """What torch calls the tensor's dtype, and its shape in torch's elements.

    Raises UnsupportedDtype, and NotSafetensors where an empty tensor is given a shape that torch can't have.
    """
    dtype, shape = _dtype_of(entry, file_name), _torch_shape(entry, file_name)
    if entry.begin == entry.end:
        _check_empty(shape, dtype, entry, file_name)
    return dtype, shape


def view_of(memory: ReadableBuffer, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """The bytes from `offset` on as a tensor that shares them; the offset must be a multiple of the dtype's size."""
    import torch

    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    with _quiet():
        return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=offset).reshape(shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning about memory that can't be written."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        yield


def _view(memory: ReadableBuffer, file_name: str, entry: TensorEntry) -> torch.Tensor:
    import torch

    dtype, shape = typed_shape(entry, file_name)
    if entry.begin == entry.end:
        return torch.empty(shape, dtype=dtype)
    if entry.begin % dtype.itemsize == 0:
        count = (entry.end - entry.begin) // dtype.itemsize
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=entry.begin).reshape(shape)
    raw = torch.frombuffer(memory, dtype=torch.uint8, count=entry.end - entry.begin, offset=entry.begin)
    return raw.clone().view(dtype).reshape(shape)


def _dtype_of(entry: TensorEntry, file_name: str) -> torch.dtype:
    import torch

    dtype = getattr(torch, TORCH_NAMES.get(entry.dtype, ""), None)
    if not isinstance(dtype, torch.dtype):
        raise UnsupportedDtype(
            f"tensor {entry.name!r} of {file_name} has dtype {entry.dtype}, which torch {torch.__version__} "
            "cannot name; install a newer torch or convert the tensor"
        )
    return dtype


def _torch_shape(entry: TensorEntry, file_name: str) -> tuple[int, ...]:
    if entry.dtype != "F4":
        return entry.shape
    if not entry.shape or entry.shape[-1] % 2:
        raise UnsupportedDtype(
            f"tensor {entry.name!r} of {file_name} has dtype F4 and shape {entry.shape}; torch packs pairs, so "
            "the last dimension must be even"
        )
    return (*entry.shape[:-1], entry.shape[-1] // 2)


def _check_empty(shape: tuple[int, ...], dtype: torch.dtype, entry: TensorEntry, file_name: str) -> None:
    import torch

    try:
        torch.empty(shape, dtype=dtype)
    except (RuntimeError, TypeError) as error:
        raise NotSafetensors(f"tensor {entry.name!r} of {file_name} has the impossible shape {shape}") from error
