"""A whole cluster on this machine: N nodes and a scheduler under one supervisor (decision 14)."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from serverless_triton.backend.devices import device_names
from serverless_triton.backend.node import NodeConfig, node_processes
from serverless_triton.backend.node_secret import NodeSecret
from serverless_triton.backend.node_tls import NodeTLS
from serverless_triton.backend.supervisor import ProcessSpec, Run, Supervisor
from serverless_triton.backend.triton_install import assemble_backend_directory, find_triton
from serverless_triton.cli.readiness import announce_listening, announce_readiness
from serverless_triton.loader.memory_limits import dram_budget, read_memory_limits
from serverless_triton.loader.store_config import Pages
from serverless_triton.scheduler.config import ConfigError, ControlConfig, check_exposure, check_state, parse_dataclass
from serverless_triton.scheduler.gateway.keys import KeyRing
from serverless_triton.scheduler.gateway.settings import GatewaySettings, host_and_port
from serverless_triton.scheduler.log_lines import LogSettings
from serverless_triton.scheduler.state.settings import StateConfig

logger = logging.getLogger(__name__)

SECRET_FILE = "secret"  # in the run directory, which only its user may enter
STATE_FILE = "state.sqlite"  # there, too, where the configuration names no other: for a scheduler that is restarted


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBudgets:
    """What each node may use. Bandwidth is throttled only where it is given.

    Copies of remote checkpoints lie in `cache_directory`, in a folder for each node, of up to `cache_bytes` each.
    Without `dram_bytes` the nodes share equally what one store would take by itself.
    """

    devices: str = "cpu"
    device_memory_bytes: int = 4 << 30
    dram_bytes: int | None = None
    pages: Pages = "auto"
    prefault: bool = True
    ssd_bytes_per_second: int | None = None
    remote_bytes_per_second: int | None = None
    cache_directory: Path | None = None
    cache_bytes: int = 0
    spare_workers: int = 1
    worker_waste_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """`up`'s configuration file. `node_tls` is of nodes and scheduler alike."""

    model_repository: Path
    servers: int = 2
    node: NodeBudgets = field(default_factory=NodeBudgets)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    control: ControlConfig = field(default_factory=ControlConfig)
    node_tls: NodeTLS | None = None
    logs: LogSettings = field(default_factory=LogSettings)  # the scheduler's
    state: StateConfig = field(default_factory=StateConfig)  # the scheduler's


def load_cluster_config(path: Path | None, overrides: dict[str, Any]) -> ClusterConfig:
    """From a YAML file, if there is one, and what the command line says above it. Raises ConfigError."""
    raw = _read(path) if path else {}
    for name, value in overrides.items():
        if isinstance(value, dict):
            value = {**raw.get(name, {}), **value}
        raw[name] = value
    if "model_repository" in raw:
        raw["model_repository"] = Path(raw["model_repository"]).resolve()
    config = parse_dataclass(ClusterConfig, raw, "configuration")
    check_exposure(config.gateway)
    check_state(config.state)
    try:
        device_names(config.node.devices)
    except ValueError as error:
        raise ConfigError(f"configuration.node.devices: {error}") from error
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of names to values, not {type(raw).__name__}")
    return raw


def run_cluster(config: ClusterConfig, logs: Path, report: Callable[[str], None]) -> None:
    """Until SIGINT or SIGTERM.

    Raises ConfigError for a port that is taken and for keys that cannot be read, TritonNotFound, StubUnusable,
    PackageUnavailable.
    """
    if not config.model_repository.is_dir():
        raise ConfigError(
            f"model_repository: {config.model_repository} is no directory; `serverless-triton add` makes one"
        )
    _require_free(config.gateway)
    if config.gateway.keys_file is not None:
        KeyRing(config.gateway.keys_file)
    installation = find_triton(report=report)
    with Run.create() as run:
        backends = assemble_backend_directory(installation, run.directory / "backends")
        secret_file = run.directory / SECRET_FILE
        NodeSecret.create(secret_file)
        nodes = [replace(node, secret_file=secret_file, tls=config.node_tls) for node in _nodes(config)]
        specs = [spec for node in nodes for spec in node_processes(node, run, installation, backends)]
        specs.append(_scheduler(config, nodes, run))
        scheme = "http" if config.gateway.tls is None else "https"
        address = f"{scheme}://{host_and_port(config.gateway.host, config.gateway.http_port)}"
        asks_clients = config.gateway.tls is not None and config.gateway.tls.client_ca_file is not None
        telling = announce_listening if asks_clients else announce_readiness
        supervise(run, specs, logs, telling(address, config.servers, config.model_repository, report))


def _require_free(gateway: GatewaySettings) -> None:
    for name in ("http_port", "grpc_port", "metrics_port"):
        port = getattr(gateway, name)
        host = gateway.metrics_address if name == "metrics_port" else gateway.host
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ConfigError(
                    f"gateway.{name}: {host_and_port(host, port)}: {error.strerror}; choose another"
                ) from error


def _nodes(config: ClusterConfig) -> list[NodeConfig]:
    ports = iter(free_ports(4 * config.servers))
    budgets = asdict(config.node)
    if config.node.dram_bytes is None:
        hugetlb = config.node.pages in ("auto", "hugetlb")
        budgets["dram_bytes"] = dram_budget(None, read_memory_limits(), hugetlb=hugetlb).bytes // config.servers
    copies = budgets.pop("cache_directory")
    if (copies is None) != (config.node.cache_bytes == 0):
        raise ConfigError("configuration.node: give cache_directory and cache_bytes together")
    return [
        NodeConfig(
            name=f"server-{number}",
            model_repository=config.model_repository,
            http_port=next(ports),
            grpc_port=next(ports),
            metrics_port=next(ports),
            agent_port=next(ports),
            cache_directory=None if copies is None else copies.resolve() / f"server-{number}",
            **budgets,
        )
        for number in range(config.servers)
    ]


def _scheduler(config: ClusterConfig, nodes: list[NodeConfig], run: Run) -> ProcessSpec:
    servers = [
        {"name": n.name, "triton": f"{n.host}:{n.grpc_port}", "agent": f"{n.host}:{n.agent_port}"} for n in nodes
    ]
    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name in ("gateway", "control", "logs")}
    file = run.directory / "scheduler.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "model_repository": str(config.model_repository),
                "servers": servers,
                "secret_file": str(run.directory / SECRET_FILE),
                "state": _state(config.state, run),
                "node_tls": None if config.node_tls is None else asdict(config.node_tls, dict_factory=_plain),
                **{name: asdict(value, dict_factory=_plain) for name, value in settings.items()},
            }
        )
    )
    command = [sys.executable, "-m", "serverless_triton.scheduler", "--config", str(file)]
    return ProcessSpec(name="scheduler", command=command)


def _state(state: StateConfig, run: Run) -> dict[str, Any]:
    if state.kind == "sqlite":
        return {"path": str((state.path or run.directory / STATE_FILE).resolve())}
    settings = asdict(state, dict_factory=_plain)
    return {**settings, "endpoints": list(state.endpoints)}


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """For YAML, which knows no paths; a process elsewhere must find them too."""
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in items}


def free_ports(count: int) -> list[int]:
    """Ports that are free now, held together while they are chosen so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for candidate in sockets:
            candidate.bind(("127.0.0.1", 0))
        return [int(candidate.getsockname()[1]) for candidate in sockets]


def supervise(
    run: Run, specs: Sequence[ProcessSpec], logs: Path, beside: Coroutine[None, None, None] | None = None
) -> None:
    """Keeps the processes running until SIGINT, SIGTERM or SIGHUP; then all of them have ended."""
    asyncio.run(_until_signal(Supervisor(run, specs, logs), beside))


async def _until_signal(supervisor: Supervisor, beside: Coroutine[None, None, None] | None) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, _stop, supervisor)
    announcing = loop.create_task(beside) if beside is not None else None
    await supervisor.run()
    if announcing is not None:
        announcing.cancel()


def _stop(supervisor: Supervisor) -> None:
    logger.info("stopping")
    supervisor.stop()
