"""The hashes of a file's chunks, in a small JSON file beside it: `<shard>.chunks.json`.

This module owns that file's format and its place; who hashes and compares is the core's and integrity.py's business.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint, CheckpointFile, is_url
from .errors import CheckpointUnreadable, CheckpointUnwritable, ChunkHashesInvalid

SUFFIX = ".chunks.json"
VERSION = 1
ALGORITHM = "xxh3-128"
# Equals the core's CHUNK_BYTES (a test compares them); written here so that this module needs no extension.
CHUNK_BYTES = 8 * 1024 * 1024
MAX_SIDECAR_BYTES = 100_000_000

_DIGEST = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkHashes:
    """The digests of a file of `file_bytes`, one for each CHUNK_BYTES of it, the last for what remains."""

    file_bytes: int
    digests: tuple[str, ...]


def sidecar_path(checkpoint: Checkpoint, file: CheckpointFile) -> Path:
    """Where the hashes of one of the checkpoint's files are: beside its name, not beside a blob that it links to."""
    if file.cached_path:
        return Path(f"{file.cached_path}{SUFFIX}")
    place = Path(checkpoint.path)
    return (place if place.is_dir() else place.parent) / f"{file.name}{SUFFIX}"


def read_hashes(checkpoint: Checkpoint, file: CheckpointFile) -> ChunkHashes | None:
    """The hashes beside a file, None where there are none. Raises ChunkHashesInvalid, CheckpointUnreadable."""
    path = sidecar_path(checkpoint, file)
    try:
        with path.open("rb") as sidecar:
            content = sidecar.read(MAX_SIDECAR_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointUnreadable(f"cannot read {path}: {error.strerror}; check its permissions") from error
    return parse_hashes_of(file, content, path)


def digests_of(path: str) -> dict[str, tuple[str, ...]]:
    """The digests of each file of a local checkpoint, by its name. Empty where one has none, and for a URL.

    Raises CheckpointError.
    """
    if is_url(path):
        return {}
    checkpoint = Checkpoint.open(path)
    hashes = {file.name: read_hashes(checkpoint, file) for file in checkpoint.files}
    known = {name: found.digests for name, found in hashes.items() if found is not None}
    return known if len(known) == len(hashes) else {}


def write_hashes(path: Path, hashes: ChunkHashes) -> None:
    """Writes a sidecar at once or not at all. Raises CheckpointUnwritable."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(render_hashes(hashes))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()


def render_hashes(hashes: ChunkHashes) -> bytes:
    """A sidecar's content."""
    content = {
        "version": VERSION,
        "algorithm": ALGORITHM,
        "chunk_bytes": CHUNK_BYTES,
        "file_bytes": hashes.file_bytes,
        "digests": list(hashes.digests),
    }
    return json.dumps(content, indent=1).encode() + b"\n"


def parse_hashes_of(file: CheckpointFile, content: bytes, path: Path | str) -> ChunkHashes:
    """What a sidecar says of a file; `path` is for the message of ChunkHashesInvalid."""
    hashes = parse_hashes(content, path)
    if hashes.file_bytes != file.bytes:
        raise _invalid(path, f"it is for a file of {hashes.file_bytes} bytes, and {file.name} has {file.bytes}")
    return hashes


def parse_hashes(content: bytes, path: Path | str) -> ChunkHashes:
    """What a sidecar says; `path` is for the message of ChunkHashesInvalid."""
    fields = _fields(content, path)
    wanted = {"version": VERSION, "algorithm": ALGORITHM, "chunk_bytes": CHUNK_BYTES}
    for name, value in wanted.items():
        if fields.get(name) != value:
            raise _invalid(path, f"{name} is {fields.get(name)!r} and not {value!r}")
    file_bytes, digests = fields.get("file_bytes"), fields.get("digests")
    if type(file_bytes) is not int or file_bytes < 0:
        raise _invalid(path, "file_bytes is no size")
    if not isinstance(digests, list) or not all(isinstance(text, str) and _DIGEST.fullmatch(text) for text in digests):
        raise _invalid(path, "digests is no list of 32 hexadecimal digits each")
    if len(digests) != -(-file_bytes // CHUNK_BYTES):
        raise _invalid(path, f"{len(digests)} digests do not fit {file_bytes} bytes")
    return ChunkHashes(file_bytes=file_bytes, digests=tuple(digests))


def _fields(content: bytes, path: Path | str) -> dict[str, Any]:
    if len(content) > MAX_SIDECAR_BYTES:
        raise _invalid(path, f"it is larger than {MAX_SIDECAR_BYTES} bytes")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"it is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _invalid(path, "it is no JSON object")
    return fields


def _invalid(path: Path | str, reason: str) -> ChunkHashesInvalid:
    return ChunkHashesInvalid(
        f"{path} does not fit the checkpoint: {reason}; where the checkpoint is known to be good, renew the hashes "
        "with `serverless-triton store hash --force`, or write it anew with `serverless-triton store repack`"
    )


def _unwritable(path: Path, error: OSError) -> CheckpointUnwritable:
    return CheckpointUnwritable(f"cannot write {path}: {error.strerror}; check its permissions and the free space")
