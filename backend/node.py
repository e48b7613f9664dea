"""One node: a store, a zygote, an agent and a tritonserver, as processes for a supervisor (decision 1)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from serverless_triton.backend.node_secret import NodeSecret
from serverless_triton.backend.node_tls import NodeTLS
from serverless_triton.backend.supervisor import ProcessSpec, Run
from serverless_triton.backend.triton_install import BackendDirectory, TritonInstallation
from serverless_triton.backend.triton_server import TritonServerConfig, triton_process
from serverless_triton.loader.store_config import Pages

ZYGOTE_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """One node's share of its machine. Several nodes on one machine throttle their SSDs, so that locality is real.

    `dram_bytes`: the store's budget; None for the share that a store takes by itself, which is too much for several.
    `secret_file`: what Triton and the agent want to be shown; without it they serve everybody who reaches them.
    `tls`: of both their gRPC ports, for clients with a certificate of its authority only.
    `schedulers`: registries, host:port, to which the node announces itself, as being at `announced_host`; None: `host`.
    `devices`: "cpu", or GPUs with commas between, as "cuda:0,cuda:1"; each has `device_memory_bytes`.
    """

    name: str
    model_repository: Path
    http_port: int
    grpc_port: int
    metrics_port: int
    agent_port: int
    host: str = "127.0.0.1"
    schedulers: tuple[str, ...] = ()
    announced_host: str | None = None
    secret_file: Path | None = None
    tls: NodeTLS | None = None
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


def node_processes(
    config: NodeConfig, run: Run, installation: TritonInstallation, backends: BackendDirectory
) -> list[ProcessSpec]:
    """The node's processes. They find each other by sockets in the run directory and may start in any order.

    Raises SecretUnusable, CertificateUnusable, StubUnusable.
    """
    sockets = {part: run.directory / f"{config.name}.{part}" for part in ("store", "zygote", "agent")}
    server = TritonServerConfig(
        name=f"{config.name}.triton",
        host=config.host,
        http_port=config.http_port,
        grpc_port=config.grpc_port,
        metrics_port=config.metrics_port,
        model_repository=config.model_repository,
        shm_prefix=f"{run.shm_prefix}{config.name}-",
        agent_socket=sockets["agent"],
        tls=config.tls,
        secret=None if config.secret_file is None else NodeSecret.read(config.secret_file),
    )
    return [
        _store(config, sockets["store"]),
        _zygote(config, sockets["zygote"], sockets["agent"], sockets["store"]),
        _agent(config, sockets, run.directory / f"{server.name}.pid"),
        triton_process(installation, backends, server),
    ]


def _module(name: str, *arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", f"serverless_triton.{name}", *arguments]


def _store(config: NodeConfig, socket: Path) -> ProcessSpec:
    command = [
        *_module("loader.daemon", "--socket", str(socket), "--pages", config.pages),
        *(() if config.dram_bytes is None else ("--dram-bytes", str(config.dram_bytes))),
        *(() if config.prefault else ("--no-prefault",)),
        *(("--ssd-bytes-per-second", str(config.ssd_bytes_per_second)) if config.ssd_bytes_per_second else ()),
        *(("--remote-bytes-per-second", str(config.remote_bytes_per_second)) if config.remote_bytes_per_second else ()),
        *(("--cache-dir", str(config.cache_directory)) if config.cache_directory else ()),
        *(("--cache-bytes", str(config.cache_bytes)) if config.cache_directory else ()),
    ]
    return ProcessSpec(name=f"{config.name}.store", command=command)


def _zygote(config: NodeConfig, socket: Path, agent: Path, store: Path) -> ProcessSpec:
    sockets = ("--socket", str(socket), "--agent-socket", str(agent), "--store-socket", str(store))
    command = _module("backend.zygote", *sockets, "--worker-waste-bytes", str(config.worker_waste_bytes))
    return ProcessSpec(name=f"{config.name}.zygote", command=command, environment=ZYGOTE_ENVIRONMENT)


def _agent(config: NodeConfig, sockets: Mapping[str, Path], triton_pid_file: Path) -> ProcessSpec:
    command = _module(
        "backend.agent_server",
        *("--socket", str(sockets["agent"]), "--zygote-socket", str(sockets["zygote"])),
        *("--store-socket", str(sockets["store"]), "--triton-pid-file", str(triton_pid_file)),
        *("--node", config.name, "--grpc-address", f"{config.host}:{config.agent_port}"),
        *("--triton-address", f"{config.host}:{config.grpc_port}"),
        *("--model-repository", str(config.model_repository)),
        *("--devices", config.devices, "--device-memory-bytes", str(config.device_memory_bytes)),
        *("--spare-workers", str(config.spare_workers)),
        *(() if config.secret_file is None else ("--secret-file", str(config.secret_file))),
        *_announcements(config),
        *_certificates(config.tls),
    )
    return ProcessSpec(name=f"{config.name}.agent", command=command)


def _announcements(config: NodeConfig) -> Iterator[str]:
    if not config.schedulers:
        return
    host = config.announced_host or config.host
    yield from ("--announced-triton", f"{host}:{config.grpc_port}", "--announced-agent", f"{host}:{config.agent_port}")
    for scheduler in config.schedulers:
        yield from ("--scheduler", scheduler)


def _certificates(tls: NodeTLS | None) -> tuple[str, ...]:
    if tls is None:
        return ()
    files = asdict(tls).items()
    return tuple(part for name, file in files for part in (f"--tls-{name.replace('_', '-')}", str(file)))
