"""Which models the repository holds, read from their config.pbtxt, loaded or not.

Owns names, versions and configurations, and notices a directory that appears, changes or goes. Whether a model runs
anywhere is the control loop's to know; what a request may say to it is `gateway/tensors.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from serverless_triton.backend.messages import ModelSpec
from serverless_triton.scheduler.errors import InvalidModelName, InvalidRequest, UnknownModel
from serverless_triton.scheduler.foreign import ForeignModel, parse_foreign
from serverless_triton.scheduler.identity import ModelRule

SERVED_BACKEND = "serverless"
# What only the gateway may say to a backend, and hear from it: no client sees these tensors.
PRIVATE_INPUTS = frozenset({"resume_token_ids"})
PRIVATE_OUTPUTS = frozenset({"attempt", "first_position", "failure", "held_tokens", "total_tokens", "token_state"})

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_VERSION = re.compile(r"0{0,64}[0-9]{1,19}")  # bounded before int() sees it, which refuses thousands of digits
_DATATYPE_NAMES = {"STRING": "BYTES"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model of the repository. `versions` are those its version policy serves, lowest first."""

    name: str
    versions: tuple[str, ...]
    config: model_config_pb2.ModelConfig = field(repr=False, compare=False)  # what clients see
    repository_config: model_config_pb2.ModelConfig = field(repr=False, compare=False)  # what servers load
    spec: ModelSpec | None  # None: another backend's
    foreign: ForeignModel | None = None  # of another backend's
    changed_unix_s: int  # when its configuration was written

    @property
    def backend(self) -> str:
        return str(self.config.backend or self.config.platform)

    def metadata(self) -> service_pb2.ModelMetadataResponse:
        """As Triton's ModelMetadata answers for a loaded model."""
        response = service_pb2.ModelMetadataResponse(name=self.name, versions=self.versions, platform=self.backend)
        batch = [-1] if self.config.max_batch_size else []
        for target, tensors in ((response.inputs, self.config.input), (response.outputs, self.config.output)):
            for tensor in tensors:
                target.add(name=tensor.name, datatype=datatype(tensor), shape=[*batch, *tensor.dims])
        return response

    def version(self, asked: str) -> str:
        """The version a request for `asked` ("" is the latest) goes to. Raises UnknownModel, InvalidRequest."""
        if not asked:
            return self.versions[-1]
        if not (_VERSION.fullmatch(asked) and int(asked) < 2**63):
            raise InvalidRequest(
                f"failed to get model version from specified version string '{asked[:64]}' (details: stol), "
                "version should be an integral value > 0"
            )
        if str(int(asked)) not in self.versions:
            raise UnknownModel(f"Request for unknown model: '{self.name}' version {int(asked)} is not found")
        return str(int(asked))

    def served(self) -> ModelSpec:
        """What its engine needs. Raises InvalidRequest for other backends' models, which generate no text."""
        if self.spec is None:
            raise InvalidRequest(
                f"model '{self.name}' uses backend '{self.backend}'; only '{SERVED_BACKEND}' models generate text: "
                "ask it by infer"
            )
        return self.spec


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenModel:
    """A directory of the repository that cannot be served, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Stamp:
    config_mtime_ns: int
    config_bytes: int
    directory_mtime_ns: int


class Models(Protocol):
    """Models by name, as somebody sees them."""

    def entry(self, name: str) -> ModelEntry:
        """Raises InvalidModelName, and UnknownModel in Triton's words (with the reason where the model is broken)."""

    def entries(self) -> tuple[ModelEntry, ...]:
        """Every sound model, by name."""

    def broken(self) -> tuple[BrokenModel, ...]:
        """Every directory that could not be read as a model, by name."""


class Catalogue:
    """`Models` on disk. Every answer is checked against the directory's times, and parsed again on change."""

    def __init__(self, model_repository: Path) -> None:
        self._root = model_repository
        self._known: dict[str, tuple[_Stamp, ModelEntry | BrokenModel]] = {}

    def entry(self, name: str) -> ModelEntry:
        """Raises InvalidModelName, and UnknownModel in Triton's words (with the reason where the model is broken)."""
        if name:
            check_name(name)
        found = self._look(name) if name else None
        if isinstance(found, ModelEntry):
            return found
        raise _not_found(name, f": {found.reason}" if found is not None else "")

    def entries(self) -> tuple[ModelEntry, ...]:
        return tuple(found for found in self._look_all() if isinstance(found, ModelEntry))

    def broken(self) -> tuple[BrokenModel, ...]:
        return tuple(found for found in self._look_all() if isinstance(found, BrokenModel))

    def _look_all(self) -> list[ModelEntry | BrokenModel]:
        names = sorted(path.name for path in self._root.iterdir() if path.is_dir() and is_name(path.name))
        for gone in self._known.keys() - set(names):
            del self._known[gone]
        return [found for name in names if (found := self._look(name)) is not None]

    def _look(self, name: str) -> ModelEntry | BrokenModel | None:
        directory = self._root / name
        try:
            stamp = _stamp(directory)
        except OSError:
            self._known.pop(name, None)
            return None
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            known = self._known[name] = (stamp, _read(directory))
        return known[1]


class VisibleModels:
    """What a rule shows of a catalogue. Everything else is as if it were not there."""

    def __init__(self, catalogue: Models, rule: ModelRule) -> None:
        self._catalogue = catalogue
        self._rule = rule

    def entry(self, name: str) -> ModelEntry:
        if name:
            check_name(name)
        if not self._rule.allows(name):
            raise _not_found(name)
        return self._catalogue.entry(name)

    def entries(self) -> tuple[ModelEntry, ...]:
        return tuple(entry for entry in self._catalogue.entries() if self._rule.allows(entry.name))

    def broken(self) -> tuple[BrokenModel, ...]:
        return tuple(broken for broken in self._catalogue.broken() if self._rule.allows(broken.name))


def _not_found(name: str, reason: str = "") -> UnknownModel:
    return UnknownModel(f"Request for unknown model: '{name}' is not found{reason}")


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and ".." not in name


def check_name(name: str) -> None:
    """Raises InvalidModelName unless `name` could be a directory of the repository, and nothing outside of it."""
    if not is_name(name):
        raise InvalidModelName(
            f"invalid model name {name[:128]!r}: use up to 128 letters, digits, '_', '-' and '.', without '..'"
        )


def datatype(tensor: model_config_pb2.ModelInput | model_config_pb2.ModelOutput) -> str:
    """KServe's name of a configured tensor's data type."""
    name = str(model_config_pb2.DataType.Name(tensor.data_type)).removeprefix("TYPE_")
    return _DATATYPE_NAMES.get(name, name)


def _stamp(directory: Path) -> _Stamp:
    config, folder = (directory / "config.pbtxt").stat(), directory.stat()
    return _Stamp(config.st_mtime_ns, config.st_size, folder.st_mtime_ns)


def _read(directory: Path) -> ModelEntry | BrokenModel:
    try:
        return _parse(directory)
    except (OSError, ValueError) as error:
        return BrokenModel(name=directory.name, reason=f"config.pbtxt: {error}"[:500])


def _parse(directory: Path) -> ModelEntry:
    """Raises OSError, ValueError."""
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse((directory / "config.pbtxt").read_text(encoding="utf-8"), config)
    except text_format.ParseError as error:
        raise ValueError(str(error)) from error
    if config.name and config.name != directory.name:
        raise ValueError(f"name is '{config.name}', but its directory is '{directory.name}'")
    config.name = directory.name
    ours = config.backend == SERVED_BACKEND
    versions = _served_versions(config, _versions(directory))
    public = _as_triton_completes(config)
    return ModelEntry(
        name=directory.name,
        versions=versions,
        config=public,
        repository_config=config,
        spec=_spec(config) if ours else None,
        foreign=None if ours else parse_foreign(config),
        changed_unix_s=int((directory / "config.pbtxt").stat().st_mtime),
    )


def _spec(config: model_config_pb2.ModelConfig) -> ModelSpec:
    if config.max_batch_size != 0 or not config.model_transaction_policy.decoupled:
        raise ValueError("'serverless' models need max_batch_size: 0 and model_transaction_policy { decoupled: true }")
    parameters: Mapping[str, str] = {key: value.string_value for key, value in config.parameters.items()}
    return ModelSpec.parse(parameters)


def _versions(directory: Path) -> list[int]:
    names = (path.name for path in directory.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and int(name) > 0)


def _served_versions(config: model_config_pb2.ModelConfig, present: list[int]) -> tuple[str, ...]:
    policy = config.version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "specific":
        chosen = [version for version in present if version in policy.specific.versions]
    else:
        chosen = present if kind == "all" else present[-max(1, policy.latest.num_versions) :]
    if not chosen:
        raise ValueError("at least one version must be available under the version policy")
    return tuple(str(version) for version in chosen)


def _as_triton_completes(repository_config: model_config_pb2.ModelConfig) -> model_config_pb2.ModelConfig:
    """With the defaults that Triton writes into a configuration when it loads it, less what is ours alone."""
    config = model_config_pb2.ModelConfig()
    config.CopyFrom(repository_config)
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    for index, group in enumerate(config.instance_group):
        group.name = group.name or f"{config.name}_{index}"
    if config.backend == "python":
        config.default_model_filename = config.default_model_filename or "model.py"
    if config.backend == SERVED_BACKEND:
        config.runtime = config.runtime or "model.py"  # as of every backend that is written in Python
    config.optimization.input_pinned_memory.enable = True
    config.optimization.output_pinned_memory.enable = True
    if config.backend != SERVED_BACKEND:
        return config
    for tensors, private in ((config.input, PRIVATE_INPUTS), (config.output, PRIVATE_OUTPUTS)):
        public = [tensor for tensor in tensors if tensor.name not in private]
        del tensors[:]
        tensors.extend(public)
    return config
