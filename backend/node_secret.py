"""What a node's Triton and agent want to be shown, so that nobody but the scheduler may load, run or watch anything.

A node and the scheduler have the same secret, in a file that only their user may read. What travels is a digest made
with it, another for each service: Triton takes what it wants to be shown on its command line, which others on its
machine can read, and the agent must not be open to them too.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from serverless_triton.backend.errors import BackendError

Metadata = tuple[tuple[str, str], ...]

AGENT_HEADER = "serverless-triton-agent"
SCHEDULER_HEADER = "serverless-triton-scheduler"
REGISTRY_HEADER = "serverless-triton-registry"
TRITON_KEY = "serverless-triton"
TRITON_HTTP_HEADER = TRITON_KEY
TRITON_GRPC_HEADER = f"triton-grpc-protocol-{TRITON_KEY}"  # the prefix is Triton's

_SECRET_BYTES = 32
_FEWEST_CHARACTERS = 32


class SecretUnusable(BackendError):
    """The file with the cluster's secret is missing, open to others, or holds none."""


@dataclass(frozen=True, slots=True)
class NodeSecret:
    """The secret in memory. Shown nowhere."""

    _key: bytes = field(repr=False)

    @classmethod
    def create(cls, file: Path) -> NodeSecret:
        """A new one in a new file of mode 0600. Raises OSError, also where the file is there already."""
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as written:
            written.write(f"{secrets.token_hex(_SECRET_BYTES)}\n")
        return cls.read(file)

    @classmethod
    def read(cls, file: Path) -> NodeSecret:
        """Raises SecretUnusable for a file that cannot be read, that others may read, or that holds too little."""
        try:
            with file.open("rb") as opened:
                mode = os.fstat(opened.fileno()).st_mode
                text = opened.read().strip()
        except OSError as error:
            raise SecretUnusable(f"{file}: the cluster's secret cannot be read: {error.strerror}") from error
        if stat.S_IMODE(mode) & 0o077:
            raise SecretUnusable(f"{file}: the cluster's secret may be read by others; chmod 600 {file}")
        if len(text) < _FEWEST_CHARACTERS:
            raise SecretUnusable(
                f"{file}: the cluster's secret is too short; write one by `openssl rand -hex {_SECRET_BYTES}`"
            )
        return cls(text)

    @property
    def for_triton(self) -> str:
        return self._digest(b"triton")

    @property
    def for_agent(self) -> str:
        return self._digest(b"agent")

    @property
    def triton_metadata(self) -> Metadata:
        """What a gRPC call to Triton shows."""
        return ((TRITON_GRPC_HEADER, self.for_triton),)

    @property
    def agent_metadata(self) -> Metadata:
        """What a call to the agent shows."""
        return ((AGENT_HEADER, self.for_agent),)

    @property
    def registry_metadata(self) -> Metadata:
        """What an agent shows to a scheduler when it announces its server."""
        return ((REGISTRY_HEADER, self._digest(b"registry")),)

    @property
    def scheduler_metadata(self) -> Metadata:
        """What a scheduler shows to the one that leads."""
        return ((SCHEDULER_HEADER, self._digest(b"scheduler")),)

    def is_schedulers(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
        """Whether a call to a scheduler, with this metadata, shows it."""
        return _shows(metadata, self.scheduler_metadata)

    def is_shown_in(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
        """Whether a call to the agent, with this metadata, shows it."""
        return _shows(metadata, self.agent_metadata)

    def is_announced_in(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
        """Whether an announcement to the scheduler, with this metadata, shows it."""
        return _shows(metadata, self.registry_metadata)

    def _digest(self, service: bytes) -> str:
        return hmac.new(self._key, service, hashlib.sha256).hexdigest()


def _shows(metadata: Iterable[tuple[str, str | bytes]] | None, wanted: Metadata) -> bool:
    told = dict(metadata or ())
    return all(hmac.compare_digest(str(told.get(name, "")).encode(), value.encode()) for name, value in wanted)
