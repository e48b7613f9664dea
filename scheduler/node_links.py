"""How the scheduler reaches its nodes: over TLS or not, and what it shows to their Tritons and agents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from serverless_triton.backend.node_secret import Metadata, NodeSecret
from serverless_triton.backend.node_tls import NodeTLS

BROKEN_LINK = "the connection to its server broke"  # what a client hears of it
# How gRPC itself tells of a connection: with the other side's address, or the name that it could not resolve.
_OF_LINKS = re.compile(r"\b(?:ipv4|ipv6|unix|unix-abstract|vsock|dns):|^failed to connect|^DNS resolution")


def tells_of_link(words: str) -> bool:
    """Whether these are gRPC's own words about a connection, which are for the log and for no client."""
    return _OF_LINKS.search(words) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLinks:
    """The metadata of calls; without a secret it is empty. Without `credentials` there is no TLS."""

    triton_metadata: Metadata = field(default=(), repr=False)
    agent_metadata: Metadata = field(default=(), repr=False)
    scheduler_metadata: Metadata = field(default=(), repr=False)
    credentials: grpc.ChannelCredentials | None = None

    @classmethod
    def of(cls, secret_file: Path | None, tls: NodeTLS | None = None) -> NodeLinks:
        """Raises SecretUnusable, CertificateUnusable."""
        credentials = None if tls is None else tls.channel_credentials()
        if secret_file is None:
            return cls(credentials=credentials)
        secret = NodeSecret.read(secret_file)
        return cls(
            triton_metadata=secret.triton_metadata,
            agent_metadata=secret.agent_metadata,
            scheduler_metadata=secret.scheduler_metadata,
            credentials=credentials,
        )

    def channel(self, address: str, options: Sequence[tuple[str, int]]) -> grpc.aio.Channel:
        """To be made and closed in a running event loop."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self.credentials, options=options)
