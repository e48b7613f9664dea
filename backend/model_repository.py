"""Puts models into a Triton model repository: one folder a model, complete and there at once, or not at all.

What stands in a config.pbtxt is `model_config`'s; what a checkpoint is, the loader's.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serverless_triton.backend.errors import InvalidModelConfig, InvalidModelName, ModelExists, UnsupportedSource
from serverless_triton.backend.messages import ModelSpec
from serverless_triton.backend.model_config import parse_parameters, render_config
from serverless_triton.loader import Checkpoint

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SOURCE_SCHEME = re.compile(r"[A-Za-z0-9]+://")
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ENGINES = ("torch", "fake")

# Where config.json keeps the same figure, newest spelling first.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("num_attention_heads", "n_head")
_HIDDEN = ("hidden_size", "n_embd", "d_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What the user chooses of a model's specification; the rest is the checkpoint's."""

    engine: str = "torch"
    dtype: str = "auto"
    max_sequence_tokens: int = 2048
    max_streams: int = 8
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("max_sequence_tokens", "max_streams", "threads"):
            if getattr(self, name) < 1:
                raise InvalidModelConfig(f"{name} is {getattr(self, name)}; use a whole number from 1")
        for name, known in (("engine", ENGINES), ("dtype", ("auto", *_DTYPE_BYTES))):
            if getattr(self, name) not in known:
                raise InvalidModelConfig(f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}")


def check_name(name: str) -> str:
    """Returns the name. Raises InvalidModelName where it could lead out of the repository or break a URL."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidModelName(
            f"{name!r} is no model name; use up to 128 of A-Z a-z 0-9 _ . - without '..', not beginning with . or -"
        )
    return name


def describe_checkpoint(source: str | Path, limits: EngineLimits) -> ModelSpec:
    """What goes into the `parameters` of a model with this checkpoint, after looking at all of its headers.

    Raises UnsupportedSource, InvalidModelConfig, or the loader's errors for files that are no checkpoint.
    """
    folder = _local_directory(str(source))
    checkpoint = Checkpoint.open(folder)
    config = _read_config(folder / "config.json")
    kv_cache_bytes = kv_bytes_per_token(config, limits.dtype) * limits.max_sequence_tokens * limits.max_streams
    return ModelSpec(
        checkpoint=str(folder),
        checkpoint_bytes=checkpoint.total_bytes,
        kv_cache_bytes=kv_cache_bytes,
        engine=limits.engine,
        dtype=limits.dtype,
        max_sequence_tokens=limits.max_sequence_tokens,
        max_streams=limits.max_streams,
        threads=limits.threads,
    )


def _local_directory(source: str) -> Path:
    if _SOURCE_SCHEME.match(source):
        raise UnsupportedSource(
            f"{source}: only local directories are supported so far; download it and give its folder"
        )
    folder = Path(source).expanduser().absolute()
    if not folder.is_dir():
        raise UnsupportedSource(f"{folder} is no directory; give the folder with config.json and *.safetensors")
    return folder


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise InvalidModelConfig(f"{file} is missing; a Hugging Face model directory has one") from error
    except ValueError as error:
        raise InvalidModelConfig(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidModelConfig(f"{file} must hold a JSON object, not {type(config).__name__}")
    return config


def kv_bytes_per_token(config: Mapping[str, Any], dtype: str = "auto") -> int:
    """Bytes that keys and values of one token take, by a Hugging Face config. Raises InvalidModelConfig."""
    heads = _figure(config, *_HEADS)
    kv_heads = _figure(config, "num_key_value_heads") if config.get("num_key_value_heads") else heads
    head_dim = _figure(config, "head_dim") if config.get("head_dim") else _figure(config, *_HIDDEN) // heads
    if dtype == "auto":
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if dtype not in _DTYPE_BYTES:
        raise InvalidModelConfig(f"config.json: dtype is {dtype!r}; give --dtype, one of {', '.join(_DTYPE_BYTES)}")
    return 2 * _figure(config, *_LAYERS) * kv_heads * head_dim * _DTYPE_BYTES[dtype]


def _figure(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise InvalidModelConfig(f"config.json: no positive whole number under {' or '.join(names)}")


def add_model(
    repository: Path, name: str, source: str | Path, *, limits: EngineLimits | None = None, replace: bool = False
) -> Path:
    """Puts a model into the repository under `name` and returns its folder.

    Raises InvalidModelName, ModelExists, and what `describe_checkpoint` raises.
    """
    check_name(name)
    spec = describe_checkpoint(source, limits or EngineLimits())
    repository.mkdir(parents=True, exist_ok=True)
    folder = repository / name
    if folder.exists() and not replace:
        raise ModelExists(f"model {name!r} is already in {repository}; pass --replace to overwrite its configuration")
    if folder.exists():
        _replace_config(folder, render_config(name, spec))
    else:
        _create(folder, render_config(name, spec))
    return folder


def read_parameters(repository: Path) -> list[dict[str, str]]:
    """The `parameters` of every model of ours in the repository, by name.

    One that can't be read, or whose parameters no load would take, is left out with a warning: its load will fail with
    the reason.
    """
    found = (_read_parameters(file) for file in sorted(repository.glob("*/config.pbtxt")))
    return [parameters for parameters in found if parameters is not None]


def _read_parameters(file: Path) -> dict[str, str] | None:
    try:
        parameters = parse_parameters(file.read_text())
        if parameters is not None:
            ModelSpec.parse(parameters)
    except (OSError, ValueError, InvalidModelConfig) as error:
        logger.warning("model_unreadable model=%s error=%s", file.parent.name, error)
        return None
    return parameters


def _replace_config(folder: Path, text: str) -> None:
    # Only the file changes places, so that a server never sees the model without its folder.
    with _scratch(folder.parent) as scratch:
        (scratch / "config.pbtxt").write_text(text)
        (folder / "1").mkdir(exist_ok=True)
        (scratch / "config.pbtxt").replace(folder / "config.pbtxt")


def _create(folder: Path, text: str) -> None:
    with _scratch(folder.parent) as scratch:
        model = scratch / "model"
        (model / "1").mkdir(parents=True)  # Triton wants a version, even an empty one
        (model / "config.pbtxt").write_text(text)
        try:
            model.rename(folder)
        except OSError as error:
            raise ModelExists(f"model {folder.name!r} came into {folder.parent} meanwhile: {error}") from error


@contextmanager
def _scratch(repository: Path) -> Iterator[Path]:
    """A folder on the repository's own file system, beside it: inside, a server might take it for a model."""
    scratch = Path(tempfile.mkdtemp(prefix=".serverless-triton-", dir=repository.absolute().parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
