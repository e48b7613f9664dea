"""What a model was defined as at one time: a digest of its configuration and of the files of its versions.

A replica carries the definition that it was started with in its id, so that it is known wherever the replica is: in
another scheduler's life, on a parked stub. Which definition is the newest is the catalogue's to say.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from serverless_triton.scheduler.admission import ReplicaId

CONFIG_NAME = "config.pbtxt"
NOT_THERE = (FileNotFoundError, NotADirectoryError)  # any other OSError says nothing about what there is
MAX_FILES = 10_000  # of one model; beyond that only the first count
_DIGITS = 12
_BYTECODE = "__pycache__"  # which loading a Python model writes beside it
_MARKED = re.compile(rf"-([0-9a-f]{{{_DIGITS}}})-[0-9a-f]{{12}}")


Place = tuple[int, int]  # which directory one is: its device, and its inode there


def place_of(directory: Path) -> Place:
    """Raises OSError."""
    found = directory.stat()
    return found.st_dev, found.st_ino


@dataclass(frozen=True, slots=True, order=True)
class FileStamp:
    """What tells a file from another of its name without reading it. `path` is relative to the model's directory."""

    path: str
    size_bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Stamp:
    """A model's directory at one time: its configuration, and everything in its versions, each version named."""

    config: FileStamp
    versions: tuple[FileStamp, ...]


def take_stamp(directory: Path) -> Stamp:
    """Raises one of NOT_THERE where the directory, or its configuration, is not there, and other OSErrors."""
    config = _file_stamp(directory / CONFIG_NAME, directory)
    found = (stamp for version in version_folders(directory) for stamp in _stamps_below(version, directory))
    return Stamp(config, tuple(sorted(stamp for _, stamp in zip(range(MAX_FILES), found, strict=False))))


def version_folders(directory: Path) -> list[Path]:
    """By version, lowest first. Raises OSError."""
    folders = [path for path in directory.iterdir() if is_version(path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name))


def is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 20 and int(name) > 0


def definition(config: bytes, stamp: Stamp, versions: Iterable[str]) -> str:
    """Twelve hexadecimal digits over a configuration, as its values stand, and the files of these versions."""
    wanted = tuple(f"{version}/" for version in versions)
    digest = hashlib.sha256(config)
    for file in stamp.versions:
        if file.path.startswith(wanted):
            digest.update(repr(file).encode())
    return digest.hexdigest()[:_DIGITS]


def combined(*definitions: str) -> str:
    """One over several: of an ensemble and its members, any of which changes it."""
    return hashlib.sha256(" ".join(definitions).encode()).hexdigest()[:_DIGITS]


def new_replica_id(model: str, of: str) -> ReplicaId:
    """Of a replica that is started with this definition, or with one that nobody knows ("")."""
    return ReplicaId("-".join(part for part in (model, of, secrets.token_hex(6)) if part))


def definition_of(replica: ReplicaId) -> str:
    """What `new_replica_id` was told; "" where it was told nothing."""
    marked = _MARKED.search(replica)
    return marked[1] if marked is not None and marked.end() == len(replica) else ""


def _stamps_below(folder: Path, root: Path) -> Iterator[FileStamp]:
    """The folder itself counts by its name alone: its times change with what the files say anyway."""
    yield FileStamp(f"{folder.relative_to(root)}/", 0, 0, 0)
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if name != _BYTECODE]
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # it went while we looked
                yield _file_stamp(Path(place, name), root)


def _file_stamp(path: Path, root: Path) -> FileStamp:
    """A link that leads nowhere counts as it stands. Raises OSError."""
    try:
        found = path.stat()
    except FileNotFoundError:
        found = path.lstat()
    return FileStamp(str(path.relative_to(root)), found.st_size, found.st_mtime_ns, found.st_ino)
