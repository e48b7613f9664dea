"""What a model's versions have of their own: parameters in `model.json` of a version's folder, not config.pbtxt's.

A server's Triton runs one version of a model at a time, so what it loads is a configuration that names that version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from serverless_triton.backend.client_json import parse_json_object
from serverless_triton.backend.messages import LIFECYCLE_PARAMETERS, ModelSpec
from serverless_triton.scheduler.definitions import CONFIG_NAME, Stamp, definition

VERSION_FILE = "model.json"
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionEntry:
    """One version that is served. Its `definition` is not another one because of another version."""

    version: str
    definition: str
    parameters: Mapping[str, str] = field(repr=False)
    spec: ModelSpec


def read_versions(
    config: model_config_pb2.ModelConfig, directory: Path, stamp: Stamp, served: Iterable[str]
) -> dict[str, VersionEntry]:
    """By version, lowest first. Raises OSError, and ValueError for parameters that no engine takes."""
    common = model_config_pb2.ModelConfig()
    common.CopyFrom(config)
    common.ClearField("version_policy")
    shared, found = common.SerializeToString(deterministic=True), {}
    for version in served:
        parameters = _own_parameters(directory / version / VERSION_FILE)
        if parameters is None:
            parameters = {key: value.string_value for key, value in config.parameters.items()}
        found[version] = VersionEntry(
            version=version,
            definition=definition(shared, stamp, [version]),
            parameters=parameters,
            spec=ModelSpec.parse(parameters),
        )
    return found


def config_of(config: model_config_pb2.ModelConfig, entry: VersionEntry) -> model_config_pb2.ModelConfig:
    """What a server loads for this version."""
    loaded = model_config_pb2.ModelConfig()
    loaded.CopyFrom(config)
    loaded.version_policy.specific.versions[:] = [int(entry.version)]
    loaded.ClearField("parameters")
    for name, value in entry.parameters.items():
        loaded.parameters[name].string_value = value
    return loaded


def _own_parameters(file: Path) -> dict[str, str] | None:
    """None where there is no such file. Raises OSError, ValueError."""
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    where = f"{file.parent.name}/{file.name}"
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"{where} is longer than {MAX_FILE_BYTES} characters; it holds a version's parameters only")
    found = parse_json_object(text, where)
    for name in sorted(found.keys() & set(LIFECYCLE_PARAMETERS)):
        raise ValueError(f"{where}: {name} is of all versions together; say it in {CONFIG_NAME}")
    wrong = [name for name, value in found.items() if not isinstance(value, str)]
    if wrong:
        raise ValueError(f"{where}: {wrong[0]} must be a string, as in {CONFIG_NAME}")
    return found
