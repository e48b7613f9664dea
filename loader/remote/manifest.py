"""What an entry of the SSD cache is a copy of: URL, and each file's name, size and version. Pure.

The manifest decides the entry's directory name, so another version of a checkpoint is another entry.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from ..checkpoint import Checkpoint, CheckpointFile, remote_device

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """One file of an entry."""

    name: str
    url: str
    bytes: int
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One version of a remote checkpoint."""

    url: str
    files: tuple[ManifestFile, ...]

    @staticmethod
    def of(checkpoint: Checkpoint) -> Manifest:
        return Manifest(url=checkpoint.path, files=tuple(map(_manifest_file, checkpoint.files)))

    def has(self, number: int, file: CheckpointFile) -> bool:
        """Whether that very version of a file is the `number`-th one."""
        return number < len(self.files) and self.files[number] == _manifest_file(file)

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def key(self) -> str:
        """The name of the entry's directory. The path is left out: two URLs may lead to the same files."""
        content = json.dumps([[file.name, file.url, file.bytes, file.etag] for file in self.files])
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint as it is while it is not cached."""
        files = (
            CheckpointFile(name=file.name, real_path=file.url, bytes=file.bytes, mtime_ns=0, inode=0, etag=file.etag)
            for file in self.files
        )
        return Checkpoint(path=self.url, device=remote_device(self.url), files=tuple(files))

    def render(self) -> bytes:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1).encode() + b"\n"


def _manifest_file(file: CheckpointFile) -> ManifestFile:
    return ManifestFile(name=file.name, url=file.real_path, bytes=file.bytes, etag=file.etag)


def parse_manifest(content: bytes) -> Manifest | None:
    """None for what this version did not write: such an entry is cleared away."""
    try:
        fields = json.loads(content)
        if fields.pop("version") != VERSION:
            return None
        files = tuple(ManifestFile(**file) for file in fields.pop("files"))
        manifest = Manifest(files=files, **fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return manifest if _is_plausible(manifest) else None


def _is_plausible(manifest: Manifest) -> bool:
    def is_text(*values: object) -> bool:
        return all(isinstance(value, str) and value for value in values)

    return (
        is_text(manifest.url)
        and bool(manifest.files)
        and all(
            is_text(file.name, file.url, file.etag)
            and "/" not in file.name
            and type(file.bytes) is int
            and file.bytes > 0
            for file in manifest.files
        )
    )
