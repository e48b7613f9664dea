"""Which models the repository holds, read from their config.pbtxt, loaded or not.

Owns names, versions and configurations: of each model its last sound definition. When to look for another one is
`repository_watch.py`'s where there is a watch. Whether a model runs anywhere is the control loop's to know; what a
request may say to it is `gateway/tensors.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from serverless_triton.backend.messages import ModelSpec
from serverless_triton.scheduler.definitions import (
    CONFIG_NAME,
    NOT_THERE,
    Place,
    Stamp,
    definition,
    place_of,
    take_stamp,
    version_folders,
)
from serverless_triton.scheduler.errors import InvalidModelName, InvalidRequest, RepositoryAway, UnknownModel
from serverless_triton.scheduler.foreign import ForeignModel, parse_foreign
from serverless_triton.scheduler.identity import ModelRule
from serverless_triton.scheduler.model_lifecycle import UNSAID, ModelLifecycle, take_lifecycle
from serverless_triton.scheduler.versions import VersionEntry, config_of, read_versions

SERVED_BACKEND = "serverless"
# What only the gateway may say to a backend, and hear from it: no client sees these tensors.
PRIVATE_INPUTS = frozenset({"resume_token_ids"})
PRIVATE_OUTPUTS = frozenset({"attempt", "first_position", "failure", "held_tokens", "total_tokens", "token_state"})

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_VERSION = re.compile(r"0{0,64}[0-9]{1,19}")  # bounded before int() sees it, which refuses thousands of digits
_DATATYPE_NAMES = {"STRING": "BYTES"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model of the repository. `versions` are those its version policy serves, lowest first.

    `trouble` says why what stands on disk now is not what is served: this is then the last that was sound.
    """

    name: str
    versions: tuple[str, ...]
    definition: str  # digest of the configuration and of the versions' files
    by_version: Mapping[str, VersionEntry] = field(default_factory=dict, compare=False)  # of those that are ours
    trouble: str = field(default="", compare=False)
    config: model_config_pb2.ModelConfig = field(repr=False, compare=False)  # what clients see
    repository_config: model_config_pb2.ModelConfig = field(repr=False, compare=False)  # what servers load
    spec: ModelSpec | None  # None: another backend's
    foreign: ForeignModel | None = None  # of another backend's
    lifecycle: ModelLifecycle = field(default=UNSAID, compare=False)
    changed_unix_s: int  # when its configuration was written

    @property
    def backend(self) -> str:
        return str(self.config.backend or self.config.platform)

    @property
    def answers_any_number(self) -> bool:
        """Whether it is another backend's that is decoupled: one request may have no response, or many. Ours have one
        for whoever asks for one.
        """
        return self.foreign is not None and bool(self.config.model_transaction_policy.decoupled)

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

    def config_for(self, definition: str) -> model_config_pb2.ModelConfig:
        """What a server loads for the version of this definition; where there is none any more, for the latest."""
        found = [entry for entry in self.by_version.values() if entry.definition == definition]
        wanted = found[0] if found else self.by_version.get(self.versions[-1])
        return self.repository_config if wanted is None else config_of(self.repository_config, wanted)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one model of the repository. "broken": what is on disk now cannot be read, for that `reason`; if
    it was served, it is as before.
    """

    model: str
    kind: Literal["added", "changed", "removed", "broken"]
    definition: str = ""
    reason: str = ""


class Models(Protocol):
    """Models by name, as somebody sees them."""

    def entry(self, name: str) -> ModelEntry:
        """Raises InvalidModelName, UnknownModel in Triton's words (with the reason where the model is broken), and
        RepositoryAway where nobody can look.
        """

    def entries(self) -> tuple[ModelEntry, ...]:
        """Every sound model, by name."""

    def broken(self) -> tuple[BrokenModel, ...]:
        """Every directory that could not be read as a model, by name."""

    def refresh(self, name: str) -> None:
        """Looks at the model's directory now. Raises InvalidModelName, RepositoryAway."""


class Catalogue:
    """`Models` on disk. Every answer is checked against the directory, and parsed again on change; where it
    `is_watched`, the watch refreshes what is known, and only a name that is not known is looked for.

    `on_change` hears of everything that `refresh`, or an answer, finds out about a model that was known.
    """

    def __init__(self, model_repository: Path) -> None:
        self.root = model_repository
        self.is_watched = False
        self.on_change: Callable[[Change], None] = lambda change: None
        self._known: dict[str, tuple[Stamp, ModelEntry | BrokenModel]] = {}
        self._place: Place | None = None  # where models were found last

    def entry(self, name: str) -> ModelEntry:
        """Raises InvalidModelName, UnknownModel in Triton's words (with the reason where the model is broken), and
        RepositoryAway where nobody can look.
        """
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

    def known_stamps(self) -> dict[str, Stamp]:
        """Of the models that were read, sound or not, as they stood then."""
        return {name: stamp for name, (stamp, _) in self._known.items()}

    def refresh(self, name: str, settled: Stamp | None = None) -> None:
        """Looks at the model's directory now; `on_change` hears what is new. With `settled` only at what has that
        stamp: anything else is being written. Raises InvalidModelName, RepositoryAway.
        """
        check_name(name)
        was_known = name in self._known
        found = self._read_again(name, settled)
        if isinstance(found, ModelEntry) and not was_known:
            self.on_change(Change(model=name, kind="added", definition=found.definition))

    def _look_all(self) -> list[ModelEntry | BrokenModel]:
        names = self._names()
        for gone in () if self.is_watched else sorted(self._known.keys() - set(names)):
            self._read_again(gone)
        return [found for name in names if (found := self._look(name)) is not None]

    def _names(self) -> list[str]:
        """What there could be models of. Raises RepositoryAway where nobody watches, and nobody can look."""
        known = self._known.keys() if self.is_watched else ()
        try:
            found = [path.name for path in self.root.iterdir() if path.is_dir() and is_name(path.name)]
        except OSError as error:
            if not self.is_watched:
                raise RepositoryAway from error
            found = []
        return sorted({*found, *known})

    def _look(self, name: str) -> ModelEntry | BrokenModel | None:
        known = self._known.get(name)
        return known[1] if known is not None and self.is_watched else self._read_again(name)

    def _read_again(self, name: str, settled: Stamp | None = None) -> ModelEntry | BrokenModel | None:
        known = self._known.get(name)
        try:
            stamp = take_stamp(self.root / name)
        except NOT_THERE:
            self._check_there()
            if self._known.pop(name, None) is not None:
                self.on_change(Change(model=name, kind="removed"))
            return None
        except OSError as error:  # nothing is gone because a disk is away
            return _broken(name, error) if known is None else known[1]
        if known is not None and (known[0] == stamp or settled not in (None, stamp)):
            return known[1]
        self._place = place_of(self.root)
        before, found = None if known is None else known[1], _read(self.root / name, stamp)
        kept, change = _compare(before, found)
        self._known[name] = (stamp, kept)
        if change is not None:
            self.on_change(change)
        return kept

    def _check_there(self) -> None:
        """That a model which is not there is gone, and not its file system. Raises RepositoryAway."""
        try:
            is_other = self._place not in (None, place_of(self.root))
            if is_other and not any(self.root.iterdir()):  # where it was mounted
                raise RepositoryAway
        except OSError as error:
            raise RepositoryAway from error


def _compare(
    before: ModelEntry | BrokenModel | None, found: ModelEntry | BrokenModel
) -> tuple[ModelEntry | BrokenModel, Change | None]:
    """What is served from now on, and what there is to tell: a sound definition outlives a broken one after it."""
    if isinstance(found, BrokenModel):
        told = None if before is None else Change(model=found.name, kind="broken", reason=found.reason)
        return replace(before, trouble=found.reason) if isinstance(before, ModelEntry) else found, told
    if before is None or (isinstance(before, ModelEntry) and before.definition == found.definition):
        return found, None
    kind: Literal["changed", "added"] = "changed" if isinstance(before, ModelEntry) else "added"
    return found, Change(model=found.name, kind=kind, definition=found.definition)


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

    def refresh(self, name: str) -> None:
        check_name(name)
        if self._rule.allows(name):
            self._catalogue.refresh(name)


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


def _read(directory: Path, stamp: Stamp) -> ModelEntry | BrokenModel:
    try:
        return _parse(directory, stamp)
    except (OSError, ValueError) as error:
        return _broken(directory.name, error)


def _broken(name: str, error: OSError | ValueError) -> BrokenModel:
    return BrokenModel(name=name, reason=f"{CONFIG_NAME}: {error}"[:500])


def _parse(directory: Path, stamp: Stamp) -> ModelEntry:
    """Raises OSError, ValueError."""
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse((directory / CONFIG_NAME).read_text(encoding="utf-8"), config)
    except text_format.ParseError as error:
        raise ValueError(str(error)) from error
    if config.name and config.name != directory.name:
        raise ValueError(f"name is '{config.name}', but its directory is '{directory.name}'")
    config.name = directory.name
    lifecycle = take_lifecycle(config)
    ours = config.backend == SERVED_BACKEND
    versions = _served_versions(config, _versions(directory))
    by_version: dict[str, VersionEntry] = {}
    if ours:
        _check_generation(config)
        by_version = read_versions(config, directory, stamp, versions)
    public = _as_triton_completes(config)
    return ModelEntry(
        name=directory.name,
        versions=versions,
        definition=definition(config.SerializeToString(deterministic=True), stamp, versions),
        config=public,
        repository_config=config,
        spec=by_version[versions[-1]].spec if by_version else None,
        by_version=by_version,
        foreign=None if ours else parse_foreign(config),
        lifecycle=lifecycle,
        changed_unix_s=stamp.config.mtime_ns // 10**9,
    )


def _check_generation(config: model_config_pb2.ModelConfig) -> None:
    if config.max_batch_size != 0 or not config.model_transaction_policy.decoupled:
        raise ValueError("'serverless' models need max_batch_size: 0 and model_transaction_policy { decoupled: true }")


def _versions(directory: Path) -> list[int]:
    return [int(folder.name) for folder in version_folders(directory)]


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
    if config.platform == "ensemble":
        config.model_transaction_policy.SetInParent()
    else:
        config.optimization.input_pinned_memory.enable = True
        config.optimization.output_pinned_memory.enable = True
    if config.backend != SERVED_BACKEND:
        return config
    for tensors, private in ((config.input, PRIVATE_INPUTS), (config.output, PRIVATE_OUTPUTS)):
        public = [tensor for tensor in tensors if tensor.name not in private]
        del tensors[:]
        tensors.extend(public)
    return config
