"""Which files make up a checkpoint, found by name and checked without reading their tensors.

A checkpoint is one .safetensors file, or a directory with model.safetensors, with model.safetensors.index.json and its
shards, or with exactly one .safetensors file. Pickle checkpoints are refused: unpickling runs code of their author.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .errors import (
    CheckpointIndexInvalid,
    CheckpointNotFound,
    CheckpointUnreadable,
    RemoteUrlRefused,
    UnsafeCheckpoint,
)

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = 100_000_000
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFile:
    """One shard and what tells its version from another: a rewritten file differs in at least one of the numbers.

    A remote file's `real_path` is its URL, its version is the `etag`, and `cached_path` says where the SSD cache has a
    complete copy: the same file to everybody who compares.
    """

    name: str
    real_path: str
    bytes: int
    mtime_ns: int
    inode: int
    etag: str = ""
    cached_path: str = field(default="", compare=False)

    @property
    def local_path(self) -> str:
        """Where the bytes can be read on this machine, "" for a remote file that is not cached."""
        return self.cached_path or ("" if self.etag else self.real_path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint's files in loading order.

    `path` is canonical_path(), or a URL; `device` names what its loads share the bandwidth of, as disk_of() and
    remote_device() do. A Hugging Face cache links each file to a blob elsewhere, so the files' real paths may lie
    outside of `path`; the index, which is downloaded content, may name files beside itself only.
    """

    path: str
    device: str = field(compare=False)
    files: tuple[CheckpointFile, ...]

    @property
    def total_bytes(self) -> int:
        """Size of all files, headers included."""
        return sum(file.bytes for file in self.files)

    @property
    def is_remote(self) -> bool:
        """Whether loading it needs the network."""
        return not all(file.local_path for file in self.files)

    @staticmethod
    def open(path: Path | str) -> Checkpoint:
        """Finds the files of the checkpoint at `path`.

        Raises CheckpointNotFound, CheckpointUnreadable, CheckpointIndexInvalid or UnsafeCheckpoint; RemoteUrlRefused
        for a URL.
        """
        check_given(path)
        if is_url(str(path)):
            raise RemoteUrlRefused("URLs go through a store: Store(...).attach(URL)")
        with as_checkpoint_error(path):
            place = canonical_path(path)
            files = _directory_files(place) if place.is_dir() else [_single_file(place)]
            return Checkpoint(path=str(place), device=disk_of(files[0]), files=tuple(map(_stat, files)))


@contextmanager
def as_checkpoint_error(path: Path | str) -> Iterator[None]:
    """What goes wrong with a path while it is followed, as CheckpointNotFound or CheckpointUnreadable."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointNotFound(f"there is no file {error.filename}; check the path of the checkpoint") from error
    except OSError as error:
        raise CheckpointUnreadable(f"cannot read {error.filename or path}: {error.strerror}") from error
    except (RuntimeError, ValueError) as error:  # a loop of links; a zero byte or a lone surrogate in a name
        raise CheckpointUnreadable(f"cannot read {str(path)!r}: {error}; give it a proper path") from error


def is_url(path: str) -> bool:
    return "://" in path


def check_given(path: Path | str) -> None:
    """Raises CheckpointNotFound for an empty path, which would otherwise stand for the working directory."""
    if not str(path):
        raise CheckpointNotFound("the path of the checkpoint is empty; give a file, a directory or a URL")


def canonical_path(path: Path | str) -> Path:
    """The one path under which a checkpoint is known: free of links, but for the file itself, whose name matters."""
    place = Path(path)
    return place.resolve() if place.is_dir() else place.parent.resolve() / place.name


def _single_file(path: Path) -> Path:
    if path.suffix in PICKLE_SUFFIXES:
        raise unsafe_file(str(path))
    return path


def _directory_files(directory: Path) -> list[Path]:
    if (directory / SINGLE_NAME).is_file():
        return [directory / SINGLE_NAME]
    if (directory / INDEX_NAME).is_file():
        index = directory / INDEX_NAME
        return [directory / name for name in parse_shard_index(_read_index(index), str(index))]
    return [directory / only_candidate(sorted(entry.name for entry in directory.iterdir()), str(directory))]


def only_candidate(names: Sequence[str], directory: str) -> str:
    """The one .safetensors file among the names of a directory without an index.

    Raises CheckpointIndexInvalid, UnsafeCheckpoint, CheckpointNotFound.
    """
    candidates = [name for name in names if name.endswith(".safetensors")]
    if len(candidates) > 1:
        raise CheckpointIndexInvalid(
            f"{directory} holds {len(candidates)} .safetensors files and no {INDEX_NAME}; name one of them, or add it"
        )
    if candidates:
        return candidates[0]
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise unsafe_model(f"{directory}/{pickles[0]}")
    raise CheckpointNotFound(f"{directory} holds no .safetensors file; give the directory of a downloaded model")


def parse_shard_index(content: bytes, index: str) -> list[str]:
    """The names of the shards, sorted. `index` is for the message of CheckpointIndexInvalid."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointIndexInvalid(f"{index} is not JSON ({error}); download it again") from error
    if not isinstance(fields, dict):
        raise CheckpointIndexInvalid(f"{index} is not a JSON object; download it again")
    weight_map = fields.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointIndexInvalid(f"{index} has no weight_map; download it again")
    return sorted({_checked_name(index, name) for name in weight_map.values()})


def _read_index(index: Path) -> bytes:
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointIndexInvalid(f"{index} is larger than {MAX_INDEX_BYTES} bytes; it is not a shard index")
    return index.read_bytes()


def _checked_name(index: str, name: object) -> str:
    is_plain = isinstance(name, str) and name.isprintable() and not set(name) & {"/", "\\"} and ".." not in name
    if not isinstance(name, str) or not is_plain or not name.endswith(".safetensors"):
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


def disk_of(path: Path) -> str:
    """The device that a file's bytes are read from. Raises OSError."""
    return f"disk:{path.stat().st_dev}"


def remote_device(url: str) -> str:
    """The device of a URL: its scheme and host; all of a hub is one."""
    return "remote:hf://" if url.startswith("hf://") else "remote:" + "/".join(url.split("/", 3)[:3])


def unsafe_file(path: str) -> UnsafeCheckpoint:
    """Why a single pickle file is refused, and what to do with it."""
    return UnsafeCheckpoint(
        f"{path} is a pickle file, which can run any code when loaded; convert it once: "
        "`import torch; from safetensors.torch import save_file; "
        "save_file(torch.load(SOURCE, weights_only=True), TARGET)` reads tensors alone and writes safetensors"
    )


def unsafe_model(path: str) -> UnsafeCheckpoint:
    """The same of the pickle file at `path` in a model's directory, which may be one of several."""
    return UnsafeCheckpoint(
        f"{path} is a pickle checkpoint, which can run any code when loaded; convert its model once where you trust "
        "it: `from transformers import AutoModelForCausalLM as M; M.from_pretrained(SOURCE).save_pretrained(TARGET)` "
        "writes safetensors"
    )
