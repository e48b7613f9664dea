"""Writes a safetensors file anew from another: the same tensors and metadata, aligned and in the order of loading."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from . import _core
from .errors import CheckpointTruncated, CheckpointUnreadable, NotSafetensors
from .layer_order import in_layer_order
from .layout import ALIGNMENT_BYTES

MAX_HEADER_BYTES = 100_000_000
COPY_BYTES = 8 * 1024 * 1024

_LENGTH = struct.Struct("<Q")


def write_in_layer_order(source: _core.FileImage, target: Path, job: _core.ReadJob) -> None:
    """Copies every tensor of `source` into a new file `target`, whose data begin at a multiple of ALIGNMENT_BYTES.

    Raises CheckpointError for what is wrong with the source, StoreCancelled, and OSError for the target.
    """
    index = _core.read_index(source)
    tensors = in_layer_order(index.tensors)
    head = render_head(tensors, _metadata_of(source, index.data_begin))
    with target.open("xb", buffering=0) as file:
        _write(file, memoryview(head))
        buffer = memoryview(bytearray(COPY_BYTES))
        for tensor in tensors:
            _copy(source, tensor, file, buffer, job)
        os.fsync(file.fileno())


def render_head(tensors: Sequence[_core.TensorEntry], metadata: Mapping[str, str] | None) -> bytes:
    """A file's first bytes: the length field, and the header padded with spaces as far as the data. Pure.

    The tensors follow each other in the given order. Raises NotSafetensors where the header would exceed the format's
    limit.
    """
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.end - tensor.begin
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    length = -(-(_LENGTH.size + len(text)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES - _LENGTH.size
    if length > MAX_HEADER_BYTES:
        raise NotSafetensors(f"a header of {length} bytes exceeds the format's limit of {MAX_HEADER_BYTES}")
    return _LENGTH.pack(length) + text.ljust(length)


def _metadata_of(source: _core.FileImage, data_begin: int) -> dict[str, str] | None:
    head = bytearray(data_begin)
    _read(source, memoryview(head), 0)
    # The core has checked it; numbers stay text, for Python refuses to convert very long ones.
    metadata = json.loads(head[_LENGTH.size :], parse_int=str, parse_float=str).get("__metadata__")
    assert metadata is None or isinstance(metadata, dict)
    return metadata


def _copy(
    source: _core.FileImage, tensor: _core.TensorEntry, file: BinaryIO, buffer: memoryview, job: _core.ReadJob
) -> None:
    for begin in range(tensor.begin, tensor.end, COPY_BYTES):
        job.stop_if_cancelled()
        block = buffer[: min(COPY_BYTES, tensor.end - begin)]
        _read(source, block, begin)
        _write(file, block)
        job.add_done(len(block))


def _read(source: _core.FileImage, into: memoryview, offset: int) -> None:
    done = 0
    while done < len(into):
        try:
            count = os.preadv(source.fileno(), [into[done:]], offset + done)
        except OSError as error:
            raise CheckpointUnreadable(f"cannot read {source.path}: {error.strerror}; check the disk") from error
        if count == 0:
            raise CheckpointTruncated(f"{source.path} became shorter while it was read; repack it once it is complete")
        done += count


def _write(file: BinaryIO, block: memoryview) -> None:
    while block:
        block = block[file.write(block) :]
