"""How the scheduler reaches its nodes: what it shows to their Tritons and agents."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from serverless_triton.backend.node_secret import Metadata, NodeSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLinks:
    """The metadata of calls. Without a secret it is empty."""

    triton_metadata: Metadata = field(default=(), repr=False)
    agent_metadata: Metadata = field(default=(), repr=False)

    @classmethod
    def with_secret_of(cls, file: Path | None) -> NodeLinks:
        """Raises SecretUnusable."""
        if file is None:
            return cls()
        secret = NodeSecret.read(file)
        return cls(triton_metadata=secret.triton_metadata, agent_metadata=secret.agent_metadata)
