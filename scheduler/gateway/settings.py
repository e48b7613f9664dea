"""Where a gateway listens and how much it lets through."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """How long one stream may take, and how often it may break. None: no limit."""

    admission_timeout_s: float = 300.0
    inactivity_timeout_s: float | None = 20.0  # without a message from upstream; a worker says something every 10 s
    overall_timeout_s: float | None = 3600.0
    max_deaths: int = 3  # the stream is lost with this many


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTLS:
    """PEM files. With `client_ca_file` only clients are served that show a certificate which it signed."""

    certificate_file: Path
    key_file: Path
    client_ca_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How long and how often a client may hold something open that does nothing."""

    idle_timeout_s: float = 75.0  # an HTTP connection without a request, also while the headers of one come
    body_timeout_s: float = 120.0  # for all of a request's body, or of a unary gRPC call's message
    stalled_timeout_s: float = 60.0  # while a client takes nothing of what it was sent
    handshake_timeout_s: float = 20.0  # of a gRPC connection
    grpc_idle_timeout_s: float = 600.0  # a gRPC connection without a call; clients connect again by themselves
    max_http_connections: int = 10_000  # on each port
    max_http_connections_per_address: int = 2_500
    max_grpc_connections: int = 10_000
    max_grpc_calls: int = 10_000  # at the same time; client streams count as long as they are open
    max_grpc_calls_per_address: int = 5_000
    max_calls_per_key: int = 2_500  # and requests over HTTP, for keys that have no number of their own
    max_calls_per_connection: int = 5_000  # beyond it a gRPC client waits, once it knows; a burst before that fails


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Port 0 takes a free one. Sizes are of one message or body.

    Without `keys_file` everybody has every right, so it listens on loopback only, unless `allow_anonymous`.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    metrics_host: str | None = None  # where the metrics are; None: where everything else is
    max_message_bytes: int = 64 * 1024 * 1024
    max_bytes_in_flight: int = 512 * 1024 * 1024  # of all requests that are being read or served, at the same time
    max_requests_per_stream: int = 512  # in flight on one client stream; a client that sends more is read more slowly
    admin_timeout_s: float = 300.0
    drain_timeout_s: float = 30.0
    keys_file: Path | None = None
    allow_anonymous: bool = False
    tls: ServerTLS | None = None
    relay: RelayLimits = field(default_factory=RelayLimits)
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)

    @property
    def metrics_address(self) -> str:
        return self.host if self.metrics_host is None else self.metrics_host

    @property
    def is_open_to_all(self) -> bool:
        """Whether other machines could do everything without having been meant to."""
        return self.keys_file is None and not self.allow_anonymous and not is_loopback(self.host)


def host_and_port(host: str, port: int) -> str:
    """As URLs and gRPC have it: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, which may lead anywhere
        return False
