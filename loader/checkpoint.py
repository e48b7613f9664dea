"""Which files make up a checkpoint, found by name and checked without reading their tensors.

A checkpoint is one .safetensors file, or a directory with model.safetensors, with model.safetensors.index.json and its
shards, or with exactly one .safetensors file. Pickle checkpoints are refused: unpickling runs code of their author.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointIndexInvalid, CheckpointNotFound, CheckpointUnreadable, UnsafeCheckpoint

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = 100_000_000
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFile:
    """One shard and what tells its version from another: a rewritten file differs in at least one of the numbers."""

    name: str
    real_path: str
    bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint's files in loading order.

    `path` is canonical_path(). A Hugging Face cache links each file to a blob elsewhere, so the files' real paths may
    lie outside of it; the index, which is downloaded content, may name files beside itself only.
    """

    path: str
    files: tuple[CheckpointFile, ...]

    @property
    def total_bytes(self) -> int:
        """Size of all files, headers included."""
        return sum(file.bytes for file in self.files)

    @staticmethod
    def open(path: Path | str) -> Checkpoint:
        """Finds the files of the checkpoint at `path`.

        Raises CheckpointNotFound, CheckpointUnreadable, CheckpointIndexInvalid or UnsafeCheckpoint.
        """
        try:
            place = canonical_path(path)
            files = _directory_files(place) if place.is_dir() else [_single_file(place)]
            return Checkpoint(path=str(place), files=tuple(_stat(file) for file in files))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointNotFound(f"there is no file {error.filename}; check the path of the checkpoint") from error
        except OSError as error:
            raise CheckpointUnreadable(f"cannot read {error.filename or path}: {error.strerror}") from error
        except (RuntimeError, ValueError) as error:  # a loop of links; a zero byte or a lone surrogate in a name
            raise CheckpointUnreadable(f"cannot read {str(path)!r}: {error}; give it a proper path") from error


def canonical_path(path: Path | str) -> Path:
    """The one path under which a checkpoint is known: free of links, but for the file itself, whose name matters."""
    place = Path(path)
    return place.resolve() if place.is_dir() else place.parent.resolve() / place.name


def _single_file(path: Path) -> Path:
    if path.suffix in PICKLE_SUFFIXES:
        raise _unsafe(path)
    return path


def _directory_files(directory: Path) -> list[Path]:
    if (directory / SINGLE_NAME).is_file():
        return [directory / SINGLE_NAME]
    if (directory / INDEX_NAME).is_file():
        return [directory / name for name in _shard_names(directory / INDEX_NAME)]
    return [_only_candidate(directory)]


def _only_candidate(directory: Path) -> Path:
    names = sorted(entry.name for entry in directory.iterdir())
    candidates = [name for name in names if name.endswith(".safetensors")]
    if len(candidates) > 1:
        raise CheckpointIndexInvalid(
            f"{directory} holds {len(candidates)} .safetensors files and no {INDEX_NAME}; name one of them, or add it"
        )
    if candidates:
        return directory / candidates[0]
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise _unsafe(directory / pickles[0])
    raise CheckpointNotFound(f"{directory} holds no .safetensors file; give the directory of a downloaded model")


def _shard_names(index: Path) -> list[str]:
    weight_map = _read_index(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointIndexInvalid(f"{index} has no weight_map; download it again")
    return sorted({_checked_name(index, name) for name in weight_map.values()})


def _read_index(index: Path) -> dict[str, Any]:
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointIndexInvalid(f"{index} is larger than {MAX_INDEX_BYTES} bytes; it is not a shard index")
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointIndexInvalid(f"{index} is not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointIndexInvalid(f"{index} is not a JSON object; download it again")
    return content


def _checked_name(index: Path, name: object) -> str:
    plain = isinstance(name, str) and name.endswith(".safetensors") and not set(name) & {"/", "\\", "\0"}
    if not isinstance(name, str) or not plain or ".." in name:
        raise CheckpointIndexInvalid(
            f"{index} names {name!r}; an index may only name .safetensors files beside it, without '/' and '..'"
        )
    return name


def _stat(path: Path) -> CheckpointFile:
    real_path = path.resolve(strict=True)
    str(real_path).encode()  # the core takes UTF-8 names only
    status = real_path.stat()
    return CheckpointFile(
        name=path.name,
        real_path=str(real_path),
        bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
    )


def _unsafe(path: Path) -> UnsafeCheckpoint:
    return UnsafeCheckpoint(
        f"{path} is a pickle checkpoint, which can run any code when loaded; convert it once where you trust it: "
        "`from transformers import AutoModelForCausalLM as M; M.from_pretrained(SOURCE).save_pretrained(TARGET)` "
        "writes safetensors"
    )
