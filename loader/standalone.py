"""Loading without a store: one process, private tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import _core
from .checkpoint import Checkpoint
from .chunk_hashes import read_hashes
from .device_tensors import device_tensors_of
from .devices import check_device, check_torch_reaches, device_of, is_cuda, name_of
from .errors import CheckpointChanged
from .indices import read_indices
from .keys import Keys, wanted
from .layout import aligned
from .progress import Progress, watched
from .replies import DeviceFile
from .tensors import everything, tensors_of

if TYPE_CHECKING:
    import torch

READ_THREADS = 4

Range = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """One file of a checkpoint, its checked header, and the hashes to verify it against (none: it is not verified)."""

    image: _core.FileImage
    index: _core.HeaderIndex
    digests: tuple[str, ...]


def load_file(
    path: Path | str,
    device: str | torch.device = "cpu",
    *,
    keys: Keys | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors of a .safetensors file or checkpoint directory, by name; with `keys` those named, or accepted, by it.

    Same keys, shapes, dtypes and bytes as safetensors.torch.load_file. CPU tensors are private and writable. A file in
    the page cache is mapped copy-on-write: as with every mapped file, it must not be overwritten in place meanwhile.
    Of any other file the wanted tensors are read past the page cache into memory of this process, and what must be read
    along with them: blocks of 4 KB, or chunks of 8 MiB where hashes lie beside the file and are compared (`verify`).
    On a CUDA device, whole files are copied there while they are read, each into one allocation. `progress` is told
    bytes done and in all. Raises CheckpointError, TensorNotFound among them where `keys` names what is not there,
    StoreFull where the machine has no memory left, and DeviceError.
    """
    check_device(device)
    if keys is not None:
        check_torch_reaches(device)
    files = open_files(path, verify=verify)
    names = _chosen(files, keys, str(path))
    if names is None and is_cuda(device):
        return _on_device(files, device_of(name_of(device)), progress)

    parts = [None if names is None else _ranges_of(file.index, names) for file in files]
    total_bytes = sum(_bytes_to_take(file, ranges) for file, ranges in zip(files, parts, strict=True))

    def take(job: _core.ReadJob) -> list[_core.Mapping]:
        return [_private_memory(file, ranges, job) for file, ranges in zip(files, parts, strict=True)]

    tensors: dict[str, torch.Tensor] = {}
    for file, memory in zip(files, watched(take, total_bytes, progress), strict=True):
        is_wanted = everything if names is None else names.__contains__
        tensors |= tensors_of(memory, file.image.bytes, file.image.path, is_wanted)
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def open_files(path: Path | str, *, verify: bool) -> list[OpenFile]:
    """The files of the checkpoint at `path`, every header checked. Raises CheckpointError."""
    checkpoint = Checkpoint.open(path)
    hashes = [read_hashes(checkpoint, file) if verify else None for file in checkpoint.files]
    images = [_core.FileImage(file.real_path) for file in checkpoint.files]
    return [
        OpenFile(image=image, index=index, digests=known.digests if known else ())
        for image, index, known in zip(images, read_indices(images), hashes, strict=True)
    ]


def check_unchanged(image: _core.FileImage) -> None:
    """Raises CheckpointChanged where the file was written, truncated or extended since it was opened."""
    if not image.is_unchanged():
        raise CheckpointChanged(f"{image.path} changed while it was being loaded; load it again once it is complete")


def _chosen(files: Iterable[OpenFile], keys: Keys | None, path: str) -> frozenset[str] | None:
    """The names that `keys` stands for, None for all."""
    if keys is None:
        return None
    chosen = wanted(keys)
    present = {entry.name for file in files for entry in file.index.tensors}
    chosen.check(present, path)
    return frozenset(filter(chosen.accepts, present))


def _ranges_of(index: _core.HeaderIndex, names: frozenset[str]) -> list[Range]:
    """The header, which is parsed anew from the bytes that were verified, and the named tensors."""
    return [(0, index.data_begin), *((entry.begin, entry.end) for entry in index.tensors if entry.name in names)]


def _bytes_to_take(file: OpenFile, ranges: list[Range] | None) -> int:
    whole = [(0, file.image.bytes)]
    return _core.bytes_to_read(file.image, whole if ranges is None else ranges, is_verified=bool(file.digests))


def _bytes_to_copy(file: OpenFile) -> int:
    """A file in the page cache is compared with its hashes before it is copied, any other meanwhile."""
    is_compared_before = bool(file.digests) and file.image.is_resident()
    return file.image.bytes * (2 if is_compared_before else 1)


def _on_device(files: list[OpenFile], device: _core.GpuDevice, progress: Progress | None) -> dict[str, torch.Tensor]:
    def take(job: _core.ReadJob) -> list[_core.DeviceMemory]:
        return [_copied(file, device, job) for file in files]

    total_bytes = sum(map(_bytes_to_copy, files))
    tensors: dict[str, torch.Tensor] = {}
    for file, memory in zip(files, watched(take, total_bytes, progress), strict=True):
        place = DeviceFile(file_name=file.image.path, offset=0, bytes=file.image.bytes)
        tensors |= device_tensors_of(memory, [place])
    return tensors


def _copied(file: OpenFile, device: _core.GpuDevice, job: _core.ReadJob) -> _core.DeviceMemory:
    image = file.image
    target = _core.DeviceMemory.allocate(device, image.bytes)
    if image.is_resident():
        # Registering a private mapping would make a copy of all its pages, so this goes through buffers.
        mapped = _private_memory(file, None, job)
        copy = _core.GpuCopy(target, [0])
        copy.copy(0, mapped, [(0, image.bytes)], job)
    else:
        memory = _core.Mapping.anonymous(aligned(image.bytes))
        copy = _core.GpuCopy(target, [0], _core.RegisteredMemory(memory))
        pieces = [[(0, memory.bytes)]]
        _core.Reader(threads=READ_THREADS).read([image], memory, pieces, job, [file.digests], sink=copy)
        check_unchanged(image)
    copy.finish()
    return target


def _private_memory(file: OpenFile, ranges: list[Range] | None, job: _core.ReadJob) -> _core.Mapping:
    image = file.image
    if image.is_resident():
        memory = _core.Mapping.copy_on_write(image.fileno(), image.bytes)
        if file.digests:
            _core.verify_memory(image, memory, file.digests, ranges=ranges, threads=READ_THREADS, job=job)
    else:
        memory = _core.Mapping.anonymous(aligned(image.bytes))
        pieces = [[(0, aligned(image.bytes))]]
        all_ranges = None if ranges is None else [ranges]
        _core.Reader(threads=READ_THREADS).read([image], memory, pieces, job, [file.digests], ranges=all_ranges)
    check_unchanged(image)
    return memory
