"""How a tritonserver of ours is started: its options, its environment, its share of /dev/shm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serverless_triton.backend.node_secret import TRITON_KEY, NodeSecret
from serverless_triton.backend.node_tls import NodeTLS
from serverless_triton.backend.supervisor import ProcessSpec
from serverless_triton.backend.triton_install import BackendDirectory, TritonInstallation, server_environment

AGENT_SOCKET_VARIABLE = "SERVERLESS_TRITON_AGENT_SOCKET"
EXIT_TIMEOUT_S = 3

# All of Triton's. Over HTTP health stays open; nothing of ours speaks HTTP to it.
_GRPC_PROTOCOLS = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)
_HTTP_APIS = tuple(name for name in _GRPC_PROTOCOLS if name != "health")


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonServerConfig:
    """One server. Ports are its own; `shm_prefix` must be no prefix of another server's.

    With a `secret` it serves only those who show it, but for health over HTTP and its metrics. With `tls`, which is of
    its gRPC alone, it has no HTTP: whoever may read its command line would have what that wants to be shown.
    """

    name: str
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    model_repository: Path
    shm_prefix: str
    agent_socket: Path
    secret: NodeSecret | None = None
    tls: NodeTLS | None = None  # of its gRPC


def triton_process(
    installation: TritonInstallation, backends: BackendDirectory, config: TritonServerConfig
) -> ProcessSpec:
    """Explicit model control, complete configurations only: completing them would cost a second a load.

    Raises StubUnusable where the stub would corrupt tensors, CertificateUnusable.
    """
    command = [
        str(installation.server),
        f"--model-repository={config.model_repository}",
        f"--backend-directory={backends.path}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        *_http(config),
        f"--grpc-address={config.host}",
        f"--grpc-port={config.grpc_port}",
        f"--metrics-address={config.host}",
        f"--metrics-port={config.metrics_port}",
        # A backend written in Python takes its shared-memory settings from the Python backend's.
        f"--backend-config=python,shm-region-prefix-name={config.shm_prefix}",
        *_restrictions(config.secret, http=config.tls is None),
        *_certificates(config.tls),
    ]
    environment = server_environment(installation)
    environment[AGENT_SOCKET_VARIABLE] = str(config.agent_socket)
    return ProcessSpec(name=config.name, command=command, environment=environment, shm_prefix=config.shm_prefix)


def _http(config: TritonServerConfig) -> tuple[str, ...]:
    if config.tls is not None:
        return ("--allow-http=false",)
    return f"--http-address={config.host}", f"--http-port={config.http_port}"


def _restrictions(secret: NodeSecret | None, *, http: bool = True) -> tuple[str, ...]:
    """Triton reads no file for it and no environment, so what it wants to be shown stands on its command line."""
    if secret is None:
        return ()
    wanted = f"{TRITON_KEY}={secret.for_triton}"
    restricted = (f"--grpc-restricted-protocol={','.join(_GRPC_PROTOCOLS)}:{wanted}",)
    return (*restricted, f"--http-restricted-api={','.join(_HTTP_APIS)}:{wanted}") if http else restricted


def _certificates(tls: NodeTLS | None) -> tuple[str, ...]:
    if tls is None:
        return ()
    tls.check()
    return (
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={tls.certificate_file}",
        f"--grpc-server-key={tls.key_file}",
        f"--grpc-root-cert={tls.ca_file}",
    )
