"""Memory of a GPU that holds safetensors files, seen as torch tensors.

They share the memory and keep it alive; only those that lie unaligned for their dtype are copied. torch takes the
memory over by DLPack. An emulated driver's memory is the host's: then the tensors are on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from . import _core
from .devices import unreachable
from .replies import DeviceFile
from .tensors import everything, typed_shape

if TYPE_CHECKING:
    import torch

LENGTH_BYTES = 8


def device_tensors_of(
    memory: _core.DeviceMemory, files: Iterable[DeviceFile], is_wanted: Callable[[str], bool] = everything
) -> dict[str, torch.Tensor]:
    """The wanted tensors of all files, by name. Nobody should write to those of a store. Raises CheckpointError."""
    content = _bytes_of(memory)
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        index = _core.parse_index(_header_of(memory, file), 0, file.bytes, file.file_name)
        tensors |= {entry.name: _view(content, file, entry) for entry in index.tensors if is_wanted(entry.name)}
    return tensors


def _bytes_of(memory: _core.DeviceMemory) -> torch.Tensor:
    import torch

    if torch.cuda.is_available():
        torch.cuda.current_stream()  # makes torch ready for the GPU, which it does only for memory of its own
    try:
        content: torch.Tensor = torch.utils.dlpack.from_dlpack(memory.dlpack())
    except (AssertionError, RuntimeError) as error:
        if torch.cuda.is_available():
            raise
        raise unreachable("cuda") from error
    return content


def _header_of(memory: _core.DeviceMemory, file: DeviceFile) -> bytes:
    length = memory.read(file.offset, min(LENGTH_BYTES, file.bytes))
    header_bytes = LENGTH_BYTES + int.from_bytes(length, "little")
    return memory.read(file.offset, min(header_bytes, file.bytes))


def _view(content: torch.Tensor, file: DeviceFile, entry: _core.TensorEntry) -> torch.Tensor:
    dtype, shape = typed_shape(entry, file.file_name)
    if entry.begin == entry.end:
        return content.new_empty(shape, dtype=dtype)
    raw = content[file.offset + entry.begin : file.offset + entry.end]
    is_aligned = raw.data_ptr() % dtype.itemsize == 0
    return (raw if is_aligned else raw.clone()).view(dtype).reshape(shape)
