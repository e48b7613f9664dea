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
class GatewaySettings:
    """Port 0 takes a free one. Sizes are of one message or body.

    Without `keys_file` everybody has every right, so it listens on loopback only, unless `allow_anonymous`.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    max_message_bytes: int = 64 * 1024 * 1024
    max_requests_per_stream: int = 512  # in flight on one client stream; a client that sends more is read more slowly
    admin_timeout_s: float = 300.0
    drain_timeout_s: float = 30.0
    keys_file: Path | None = None
    allow_anonymous: bool = False
    relay: RelayLimits = field(default_factory=RelayLimits)

    @property
    def is_open_to_all(self) -> bool:
        """Whether other machines could do everything without having been meant to."""
        return self.keys_file is None and not self.allow_anonymous and not is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, which may lead anywhere
        return False
