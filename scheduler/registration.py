"""Servers that come by announcing themselves: what is asked of them, and who is there (pure).

A node's agent announces its server and says so again after every heartbeat. One that has missed its beats is silent;
whether it is gone is for `registry.py`, which knows whether anything of it still answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from serverless_triton.scheduler.admission import ServerName
from serverless_triton.scheduler.errors import SchedulerError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ADDRESS = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})")
_EVERYWHERE = ("0.0.0.0:", "[::]:")


class AnnouncementRefused(SchedulerError):
    """Base; none of it changes who is there."""


class BadAnnouncement(AnnouncementRefused):
    """A name or an address that is none."""

    code = "INVALID_ARGUMENT"


class AnnouncementTaken(AnnouncementRefused):
    """Another server has that name, or one of the addresses."""

    code = "ALREADY_EXISTS"


class TooManyServers(AnnouncementRefused):
    code = "RESOURCE_EXHAUSTED"


class Unannounced(AnnouncementRefused):
    """The call does not show the cluster's secret."""

    code = "UNAUTHENTICATED"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationSettings:
    """Where agents announce servers. One that said nothing for `missed_beats` of `heartbeat_s` is silent."""

    port: int
    host: str = "127.0.0.1"
    heartbeat_s: float = 2.0
    missed_beats: int = 3
    max_servers: int = 1024

    @property
    def patience_s(self) -> float:
        return self.heartbeat_s * self.missed_beats


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """One server: its Triton's gRPC address and its node agent's, host:port."""

    name: str
    triton: str
    agent: str

    @property
    def addresses(self) -> tuple[str, str]:
        return self.triton, self.agent


@dataclass(slots=True)
class Members:
    """Who has announced itself and when last. `listed` are the configuration's, which nobody else may pass for."""

    settings: RegistrationSettings
    listed: tuple[ServerConfig, ...] = ()
    _announced: dict[str, ServerConfig] = field(default_factory=dict)
    _heard_s: dict[str, float] = field(default_factory=dict)

    def hear(self, server: ServerConfig, now_s: float) -> bool:
        """Whether it is new. Raises AnnouncementRefused."""
        if self._announced.get(server.name) != server:
            check(server)
            self._check_free(server)
            self._check_room()
            self._announced[server.name] = server
            self._heard_s[server.name] = now_s
            return True
        self._heard_s[server.name] = now_s
        return False

    def _check_free(self, server: ServerConfig) -> None:
        for other in (*self.listed, *self._announced.values()):
            if other.name == server.name:
                raise AnnouncementTaken(f"a server named '{server.name}' is there already; name this one otherwise")
            shared = sorted(set(other.addresses) & set(server.addresses))
            if shared:
                raise AnnouncementTaken(f"{shared[0]} is the address of server '{other.name}'")

    def _check_room(self) -> None:
        if len(self._announced) >= self.settings.max_servers:
            raise TooManyServers(f"{len(self._announced)} servers have announced themselves; raise max_servers")

    def silent(self, now_s: float) -> tuple[ServerName, ...]:
        """Those that have missed their beats, by name."""
        late = [name for name, heard_s in self._heard_s.items() if now_s - heard_s > self.settings.patience_s]
        return tuple(ServerName(name) for name in sorted(late))

    def drop(self, names: Iterable[str]) -> None:
        """Others may have their names and addresses."""
        for name in names:
            del self._announced[name], self._heard_s[name]


def check(server: ServerConfig) -> None:
    """Raises BadAnnouncement."""
    if not _NAME.fullmatch(server.name):
        raise BadAnnouncement("node: give a name of up to 64 letters, digits, '.', '_' and '-'")
    for part, address in (("triton", server.triton), ("agent", server.agent)):
        found = _ADDRESS.fullmatch(address)
        if found is None or not 0 < int(found[1]) < 65536:
            raise BadAnnouncement(f"{part}: give its gRPC address as host:port")
        if address.startswith(_EVERYWHERE):
            raise BadAnnouncement(f"{part}: {address} is no address that others reach; give --announced-host")
    if server.triton == server.agent:
        raise BadAnnouncement(f"triton and agent: {server.agent} cannot be both")
