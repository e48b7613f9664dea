"""What the scheduler is told about its state: a SQLite file, or an etcd cluster that several schedulers share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LEASE_S = (2, 60)  # etcd itself grants no less than one and a half of its election timeouts
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdTLS:
    """PEM files: whose servers are believed, and what is shown to them where they ask for it."""

    ca_file: Path
    certificate_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConfig:
    """`path` is SQLite's: without one what is learned lasts as long as the process. All else is etcd's.

    `endpoints` are its members, host:port; all keys begin with `prefix`. A leader that cannot renew its lease of
    `lease_s` is followed by another. `address` is this scheduler's own, by which the others reach it.
    """

    kind: Literal["sqlite", "etcd"] = "sqlite"
    path: Path | None = None
    endpoints: tuple[str, ...] = ()
    tls: EtcdTLS | None = None
    prefix: str = "serverless-triton/"
    lease_s: int = 5
    address: str | None = None

    def faults(self) -> Iterator[tuple[str, str]]:
        """Fields that are wrong, each with what would be right."""
        if self.kind == "sqlite":
            for name in ("endpoints", "tls", "address"):
                if getattr(self, name):
                    yield name, "is etcd's; give kind: etcd, or leave it out"
            return
        if self.path is not None:
            yield "path", "is SQLite's; give kind: sqlite, or leave it out"
        yield from self._wrong_addresses()
        shortest, longest = LEASE_S
        if not shortest <= self.lease_s <= longest:
            yield "lease_s", f"is {self.lease_s}; give {shortest} to {longest} seconds"
        if not re.fullmatch(r"[!-~]+/", self.prefix):
            yield "prefix", f"is {self.prefix!r}; give printable characters that end with a slash"
        if self.tls is not None and (self.tls.certificate_file is None) != (self.tls.key_file is None):
            yield "tls", "give certificate_file and key_file together"

    def _wrong_addresses(self) -> Iterator[tuple[str, str]]:
        if not self.endpoints:
            yield "endpoints", "give at least one member of the etcd cluster, host:port"
        for number, endpoint in enumerate(self.endpoints):
            if not is_address(endpoint):
                yield f"endpoints[{number}]", f"is {endpoint!r}; give host:port, without a scheme (for TLS give tls)"
        if len(set(self.endpoints)) != len(self.endpoints):
            yield "endpoints", f"must differ; got {', '.join(self.endpoints)}"
        if self.address is None:
            yield "address", "is missing; give host:port, by which the other schedulers reach this one"
        elif not is_address(self.address):
            yield "address", f"is {self.address!r}; give host:port"


def is_address(text: str) -> bool:
    """Whether it is host:port with a port that there is."""
    found = _ADDRESS.fullmatch(text)
    return found is not None and 0 < int(found[1]) < 65536
