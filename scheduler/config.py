"""The scheduler's configuration, read once and strictly from YAML.

An unknown key or a bad value fails with its path and what would be right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from serverless_triton.backend.node_tls import NodeTLS
from serverless_triton.scheduler.decision import PolicyName
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.gateway.settings import GatewaySettings, is_loopback
from serverless_triton.scheduler.log_lines import LogSettings
from serverless_triton.scheduler.registration import RegistrationSettings, ServerConfig
from serverless_triton.scheduler.state.settings import StateConfig

T = TypeVar("T")
_KIND_NAMES = {int: "a whole number", float: "a number", str: "a string", Path: "a path"}
_SCALARS = tuple(_KIND_NAMES)


class ConfigError(SchedulerError, ValueError):
    """The configuration is wrong at the path that the message begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlConfig:
    """By which policy the control loop decides (`rivals.py`), and what bounds its waits (seconds), queues and idle
    replicas.

    A replica that was idle for `keep_alive_s` is parked; None: as its model's idle times teach, with
    `adaptive_keep_alive`, and else only where room is needed. Checkpoints of models that are expected within
    `prefetch_horizon_s` are read into DRAM ahead, up to `prefetch_bytes_per_server`. Of the stubs that a server's
    Triton keeps for parked replicas the oldest are unloaded beyond `max_parked_per_server`, and where they hold more
    than `max_parked_bytes_per_server` of memory of their own.
    """

    policy: PolicyName = "startup_time"
    load_timeout_s: float = 120.0
    release_timeout_s: float = 10.0
    max_waiting_per_model: int = 1024
    max_failed_starts: int = 3
    keep_alive_s: float | None = None
    adaptive_keep_alive: bool = True
    prefetch_bytes_per_server: int = 0
    prefetch_horizon_s: float = 30.0
    max_parked_per_server: int = 16
    max_parked_bytes_per_server: int = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Everything the scheduler process is told. `secret_file` is the nodes' own; `node_tls` is its side of theirs.

    Servers are those that are listed; with `registration`, also those whose agents announce them.
    """

    model_repository: Path
    servers: tuple[ServerConfig, ...] = ()
    registration: RegistrationSettings | None = None
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    control: ControlConfig = field(default_factory=ControlConfig)
    secret_file: Path | None = None
    node_tls: NodeTLS | None = None
    logs: LogSettings = field(default_factory=LogSettings)
    state: StateConfig = field(default_factory=StateConfig)


def load_config(path: Path) -> SchedulerConfig:
    """Raises ConfigError, with the file in front."""
    try:
        return parse_config(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(value: object) -> SchedulerConfig:
    """Raises ConfigError."""
    raw = dict(_mapping(value, "configuration"))
    servers = raw.pop("servers", [] if raw.get("registration") is not None else None)
    if not isinstance(servers, list) or not (servers or raw.get("registration") is not None):
        raise ConfigError("servers: give a list of at least one server with name, triton and agent, or registration")
    raw["servers"] = tuple(parse_dataclass(ServerConfig, s, f"servers[{i}]") for i, s in enumerate(servers))
    names = [server.name for server in raw["servers"]]
    if len(set(names)) != len(names):
        raise ConfigError(f"servers: names must differ; got {', '.join(names)}")
    if isinstance(raw.get("model_repository"), str):
        raw["model_repository"] = Path(raw["model_repository"])
    config = parse_dataclass(SchedulerConfig, raw, "configuration")
    check_exposure(config.gateway)
    check_state(config.state)
    _check_address(config.state, config.secret_file)
    if config.registration is not None:
        _check_registration(config.registration, config.secret_file)
    return config


def _check_registration(registration: RegistrationSettings, secret_file: Path | None) -> None:
    path = "configuration.registration"
    if registration.heartbeat_s <= 0:
        raise ConfigError(f"{path}.heartbeat_s: is {registration.heartbeat_s:g}; give seconds above 0")
    for name in ("missed_beats", "max_servers"):
        if getattr(registration, name) < 1:
            raise ConfigError(f"{path}.{name}: is {getattr(registration, name)}; give a number from 1")
    if not 0 < registration.port < 65536:
        raise ConfigError(f"{path}.port: is {registration.port}; give a port from 1 to 65535")
    if secret_file is None and not is_loopback(registration.host):
        raise ConfigError(
            f"{path}.host: other machines reach {registration.host!r} and could announce servers that get streams; "
            "give configuration.secret_file"
        )


def check_state(state: StateConfig) -> None:
    """Raises ConfigError for the first thing that is wrong."""
    for name, words in state.faults():
        raise ConfigError(f"configuration.state.{name}: {words}")


def _check_address(state: StateConfig, secret_file: Path | None) -> None:
    if state.address is not None and secret_file is None and not is_loopback(state.address.rpartition(":")[0]):
        raise ConfigError(
            f"configuration.state.address: other machines reach {state.address!r} and could end and take places; "
            "give configuration.secret_file"
        )


def check_exposure(gateway: GatewaySettings) -> None:
    """Raises ConfigError where the gateway would give every right to everybody on the network."""
    if gateway.is_open_to_all:
        raise ConfigError(
            f"configuration.gateway.host: other machines reach {gateway.host!r}, and without keys they may do "
            "everything; give gateway.keys_file, or gateway.allow_anonymous: true where that is meant"
        )


def _mapping(value: object, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path}: must be a mapping of names to values, not {type(value).__name__}")
    return value


def _list(value: object, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{path}: is {value!r}; give a list")
    return value


def parse_dataclass(kind: type[T], value: object, path: str) -> T:
    """A dataclass from a mapping, its dataclass fields from mappings in it. Raises ConfigError."""
    raw, hints = _mapping(value, path), get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for name in raw:
        if name not in known:
            raise ConfigError(f"{path}.{name}: is unknown; known are {', '.join(known)}")
    for name, spec in known.items():
        if name not in raw and spec.default is MISSING and spec.default_factory is MISSING:
            raise ConfigError(f"{path}.{name}: is missing")
    return kind(**{name: _field(raw[name], hints[name], f"{path}.{name}") for name in raw})


def _field(value: Any, hint: Any, path: str) -> Any:
    optional = type(None) in get_args(hint)
    nested = next((kind for kind in get_args(hint) if is_dataclass(kind)), None) if optional else hint
    if isinstance(nested, type) and is_dataclass(nested) and not (optional and value is None):
        return parse_dataclass(nested, value, path)
    if hint is bool and not isinstance(value, bool):
        raise ConfigError(f"{path}: is {value!r}; give true or false")
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise ConfigError(f"{path}: is {value!r}; give one of {', '.join(get_args(hint))}")
    if get_origin(hint) is tuple and get_args(hint)[0] in _SCALARS:
        return tuple(_field(one, get_args(hint)[0], f"{path}[{n}]") for n, one in enumerate(_list(value, path)))
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind in _SCALARS]
    if not kinds or (value is None and type(None) in get_args(hint)):
        return value
    (kind,) = kinds
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is Path and isinstance(value, str):
        value = Path(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{path}: is {value!r}; give {_KIND_NAMES[kind]}")
    if isinstance(value, (int, float)) and not (value >= 0 and math.isfinite(value)):
        raise ConfigError(f"{path}: is {value!r}; give a number from 0")
    return value
