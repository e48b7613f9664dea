"""What one rank of a tensor-parallel group wants of a checkpoint, taken straight out of its files at any degree.

A dimension is split as torch.tensor_split does it: into `degree` runs in order, the first `size % degree` of them one
longer than the others. A slice of the first dimension is one range of the file, and only that is read; a slice of any
other is copied out of the tensor's rows as they come by, so that no more than a few chunks are ever held besides the
result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import _core
from .devices import check_torch_reaches
from .errors import SliceInvalid
from .keys import check_present
from .progress import Progress, watched
from .standalone import READ_THREADS, OpenFile, check_unchanged, open_files
from .tensors import typed_shape, view_of

if TYPE_CHECKING:
    import torch

# Where a slice begins in the result: a multiple of this suits every dtype and vector instruction.
SLICE_ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """The part of rank `rank` of `degree`, from 0, along dimension `dim` (negative: counted from the last)."""

    dim: int
    rank: int
    degree: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.degree:
            raise ValueError(f"rank {self.rank} of {self.degree}; ranks go from 0 to degree - 1")

    def bounds(self, size: int) -> tuple[int, int]:
        """Which of the dimension's `size` indices are this rank's: begin, end."""
        share, rest = divmod(size, self.degree)
        begin = self.rank * share + min(self.rank, rest)
        return begin, begin + share + (self.rank < rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A tensor of the result, and where it lies in the result's memory."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The result's tensors, for each file what to copy out of it, and the size of the memory that all of it goes to."""

    parts: list[_Part]
    copies: list[list[_core.StridedCopy]]
    bytes: int


def load_slices(
    path: Path | str,
    slices: Mapping[str, TensorSlice | None],
    device: str | torch.device = "cpu",
    *,
    verify: bool = True,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """The named tensors of a .safetensors file or checkpoint directory, each cut to its slice (None: all of it).

    Equal to slicing what load_file returns. The tensors are contiguous, private and writable; they share one piece of
    memory. Where hashes lie beside a file and are compared (`verify`), the chunks of 8 MiB in which a slice lies are
    read whole, else its bytes alone. Raises SliceInvalid where a slice does not fit its tensor, TensorNotFound, every
    other CheckpointError, DeviceUnavailable, and StoreFull where the machine has no memory left.
    """
    check_torch_reaches(device)
    files = open_files(path, verify=verify)
    check_present(slices, {entry.name for file in files for entry in file.index.tensors}, str(path))
    plan = _plan(files, slices)
    total_bytes = sum(map(_bytes_to_read, files, plan.copies))

    def gather(job: _core.ReadJob) -> _core.Mapping:
        memory = _core.Mapping.anonymous(plan.bytes)
        images = [file.image for file in files]
        digests = [file.digests for file in files]
        _core.Reader(threads=READ_THREADS).gather(images, memory, plan.copies, job, digests)
        for image in images:
            check_unchanged(image)
        return memory

    memory = watched(gather, total_bytes, progress)
    return {part.name: view_of(memory, part.offset, part.dtype, part.shape).to(device) for part in plan.parts}


def take_slices(
    tensors: Mapping[str, torch.Tensor], slices: Mapping[str, TensorSlice | None]
) -> dict[str, torch.Tensor]:
    """The same of tensors that are in memory, attached ones for instance.

    What is contiguous there as it is stays a view; the rest is copied. Raises SliceInvalid, and KeyError for a name
    that is not there.
    """
    return {name: _narrowed(name, tensors[name], part).contiguous() for name, part in slices.items()}


def _narrowed(name: str, tensor: torch.Tensor, part: TensorSlice | None) -> torch.Tensor:
    if part is None:
        return tensor
    dim = _dimension(name, tensor.shape, part)
    begin, end = part.bounds(tensor.shape[dim])
    return tensor.narrow(dim, begin, end - begin)


def _dimension(name: str, shape: tuple[int, ...], part: TensorSlice) -> int:
    if not -len(shape) <= part.dim < len(shape):
        raise SliceInvalid(
            f"tensor {name!r} has shape {tuple(shape)}, which has no dimension {part.dim} to be split along"
        )
    return part.dim % len(shape)


def _plan(files: list[OpenFile], slices: Mapping[str, TensorSlice | None]) -> _Plan:
    parts: list[_Part] = []
    copies: list[list[_core.StridedCopy]] = []
    offset = 0
    for file in files:
        wanted = [entry for entry in file.index.tensors if entry.name in slices]
        copies.append([_header_copy(file, offset)] if file.digests and wanted else [])
        offset += _aligned(file.index.data_begin) if copies[-1] else 0
        for entry in wanted:
            part, copy = _part_of(file, entry, slices[entry.name], offset)
            parts.append(part)
            copies[-1].append(copy)
            offset += _aligned(math.prod(part.shape) * part.dtype.itemsize)
    return _Plan(parts=parts, copies=copies, bytes=offset)


def _header_copy(file: OpenFile, target: int) -> _core.StridedCopy:
    """Nobody needs the header again, but what it says must be verified as well."""
    head_bytes = file.index.data_begin
    return _core.StridedCopy(begin=0, rows=1, row_bytes=head_bytes, keep_begin=0, keep_bytes=head_bytes, target=target)


def _part_of(
    file: OpenFile, entry: _core.TensorEntry, part: TensorSlice | None, offset: int
) -> tuple[_Part, _core.StridedCopy]:
    dtype, shape = typed_shape(entry, file.image.path)
    dim = 0 if part is None else _dimension(entry.name, shape, part)
    # A whole tensor is one row, and so is a scalar, which has no dimension to be split along.
    begin, end, size = (0, 1, 1) if part is None else (*part.bounds(shape[dim]), shape[dim])
    rows = math.prod(shape[:dim])
    index_bytes = (entry.end - entry.begin) // (rows * size) if rows * size else 0
    copy = _core.StridedCopy(
        begin=entry.begin,
        rows=rows if index_bytes else 0,
        row_bytes=size * index_bytes,
        keep_begin=begin * index_bytes,
        keep_bytes=(end - begin) * index_bytes,
        target=offset,
    )
    kept_shape = shape if part is None else (*shape[:dim], end - begin, *shape[dim + 1 :])
    return _Part(name=entry.name, dtype=dtype, shape=kept_shape, offset=offset), copy


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // SLICE_ALIGNMENT_BYTES) * SLICE_ALIGNMENT_BYTES


def _bytes_to_read(file: OpenFile, copies: list[_core.StridedCopy]) -> int:
    ranges = [piece for copy in copies for piece in copy.ranges()]
    return _core.bytes_to_read(file.image, ranges, is_verified=bool(file.digests))
