"""Puts models into a Triton model repository: one folder a model, complete and there at once, or not at all.

What stands in a config.pbtxt is `model_config`'s; what a checkpoint is, the loader's.
"""

from __future__ import annotations

import dataclasses
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

from serverless_triton.backend.client_json import parse_json_object
from serverless_triton.backend.errors import InvalidModelConfig, InvalidModelName, ModelExists, UnsupportedSource
from serverless_triton.backend.messages import MODES, ModelSpec
from serverless_triton.backend.model_config import parse_parameters, render_config, spec_parameters
from serverless_triton.backend.model_parts import converted_bytes
from serverless_triton.loader import Checkpoint, fetch_model_files
from serverless_triton.loader.checkpoint import is_url
from serverless_triton.loader.opener import known_as

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
CONFIG_NAME = "config.pbtxt"
VERSION = "1"  # Triton wants a version, even an empty one; here configuration and tokenizer of a remote model lie in it
VERSION_FILE = "model.json"  # what a later version has for `parameters`, instead of those in config.pbtxt
LOCAL_SCHEME = "file://"
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
    mode: str = "auto"
    step_tokens: int = 512
    engine_options: str = ""  # a JSON object

    def __post_init__(self) -> None:
        for name in ("max_sequence_tokens", "max_streams", "threads", "step_tokens"):
            if getattr(self, name) < 1:
                raise InvalidModelConfig(f"{name} is {getattr(self, name)}; use a whole number from 1")
        for name, known in (("engine", ENGINES), ("dtype", ("auto", *_DTYPE_BYTES)), ("mode", MODES)):
            if getattr(self, name) not in known:
                raise InvalidModelConfig(f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}")
        try:
            parse_json_object(self.engine_options or "{}", "engine_options")
        except ValueError as error:
            raise InvalidModelConfig(str(error)) from error


def check_name(name: str) -> str:
    """Returns the name. Raises InvalidModelName where it could lead out of the repository or break a URL."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidModelName(
            f"{name!r} is no model name; use up to 128 of A-Z a-z 0-9 _ . - without '..', not beginning with . or -"
        )
    return name


def describe_checkpoint(source: str | Path, limits: EngineLimits, fetched: Path | None = None) -> ModelSpec:
    """What goes into the `parameters` of a model with this checkpoint; `source` is a directory or a URL.

    The weights of a URL stay where they are; its other files come into `fetched`. Raises UnsupportedSource,
    InvalidModelConfig, or the loader's errors for what is no checkpoint.
    """
    if is_url(str(source)) and not str(source).startswith(LOCAL_SCHEME):
        if fetched is None:
            raise UnsupportedSource(f"{source} is not on this machine; download it and give its folder")
        checkpoint, folder = fetch_model_files(str(source), fetched), fetched
        reference = checkpoint.path
    else:
        folder = _local_directory(str(source))
        checkpoint, reference = Checkpoint.open(folder), str(folder)
    config = _read_config(folder / "config.json")
    kv_cache_bytes = kv_bytes_per_token(config, limits.dtype) * limits.max_sequence_tokens * limits.max_streams
    return ModelSpec(
        checkpoint=reference,
        checkpoint_bytes=checkpoint.total_bytes,
        kv_cache_bytes=kv_cache_bytes,
        converted_bytes=_converted_bytes(checkpoint, config, limits),
        engine=limits.engine,
        dtype=limits.dtype,
        max_sequence_tokens=limits.max_sequence_tokens,
        max_streams=limits.max_streams,
        threads=limits.threads,
        mode=limits.mode,
        step_tokens=limits.step_tokens,
        engine_options=limits.engine_options,
    )


def _converted_bytes(checkpoint: Checkpoint, config: Mapping[str, Any], limits: EngineLimits) -> int:
    """What a CPU's engine keeps for itself of weights that do not run as they are stored.

    A remote checkpoint is taken for one that is stored as its config.json says. Raises the loader's errors.
    """
    configured = _configured_dtype(config)
    if limits.engine != "torch" or (limits.dtype == "auto" and not configured):  # then it is that of the weights
        return 0
    dtype = _running_dtype(config, limits.dtype)
    if not checkpoint.is_remote:
        return converted_bytes(checkpoint.path, dtype)
    if configured not in _DTYPE_BYTES or configured == dtype:
        return 0
    return checkpoint.total_bytes // _DTYPE_BYTES[configured] * _DTYPE_BYTES[dtype]


def _local_directory(source: str) -> Path:
    folder = Path(known_as(source)) if is_url(source) else Path(source).expanduser().absolute()
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
    return 2 * _figure(config, *_LAYERS) * kv_heads * head_dim * _DTYPE_BYTES[_running_dtype(config, dtype)]


def _running_dtype(config: Mapping[str, Any], dtype: str) -> str:
    """What `auto` means. Raises InvalidModelConfig."""
    if dtype == "auto":
        dtype = _configured_dtype(config) or "float32"
    if dtype not in _DTYPE_BYTES:
        raise InvalidModelConfig(f"config.json: dtype is {dtype!r}; give --dtype, one of {', '.join(_DTYPE_BYTES)}")
    return dtype


def _configured_dtype(config: Mapping[str, Any]) -> str:
    """Empty where it says nothing."""
    return str(config.get("dtype") or config.get("torch_dtype") or "")


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
    folder = repository / name
    is_there = folder.exists()
    if is_there and not replace:
        raise ModelExists(f"model {name!r} is already in {repository}; pass --replace to overwrite its configuration")
    with _scratch(repository) as scratch:
        version = scratch / "model" / VERSION
        version.mkdir(parents=True)
        spec = describe_checkpoint(source, limits or EngineLimits(), version)
        if any(version.iterdir()):
            spec = dataclasses.replace(spec, files=str((folder / VERSION).absolute()))
        (scratch / "model" / CONFIG_NAME).write_text(render_config(name, spec))
        repository.mkdir(exist_ok=True)
        _update(folder, scratch / "model") if is_there else _create(folder, scratch / "model")
    return folder


def add_version(
    repository: Path, name: str, version: int, source: str | Path, *, limits: EngineLimits | None = None
) -> Path:
    """Puts another version of a model that is there into the repository, and returns its folder.

    Which versions are served is for the version policy in config.pbtxt to say, by default the latest. Raises
    InvalidModelName, InvalidModelConfig, ModelExists, and what `describe_checkpoint` raises.
    """
    model = repository / check_name(name)
    folder = model / str(version)
    if not (model / CONFIG_NAME).is_file():
        raise InvalidModelConfig(f"model {name!r} is not in {repository}; add it without --version first")
    if folder.exists():
        raise ModelExists(f"version {version} of model {name!r} is already in {repository}; add another one")
    with _scratch(repository) as scratch:
        made = scratch / folder.name
        made.mkdir()
        spec = describe_checkpoint(source, limits or EngineLimits(), made)
        if any(made.iterdir()):
            spec = dataclasses.replace(spec, files=str(folder.absolute()))
        (made / VERSION_FILE).write_text(json.dumps(spec_parameters(spec), indent=2) + "\n")
        _create(folder, made)
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


def _update(folder: Path, model: Path) -> None:
    """Only files change places, the configuration last, so that a server never sees the model without its folder."""
    (folder / VERSION).mkdir(exist_ok=True)
    for file in sorted((model / VERSION).iterdir()):
        file.replace(folder / VERSION / file.name)
    (model / CONFIG_NAME).replace(folder / CONFIG_NAME)


def _create(folder: Path, model: Path) -> None:
    try:
        model.rename(folder)
    except OSError as error:
        raise ModelExists(f"model {folder.name!r} came into {folder.parent} meanwhile: {error}") from error


@contextmanager
def _scratch(repository: Path) -> Iterator[Path]:
    """A folder on the repository's own file system, beside it: inside, a server might take it for a model."""
    repository.absolute().parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".serverless-triton-", dir=repository.absolute().parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
