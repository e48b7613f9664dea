"""Who may hold leases: clients that are connected, and orphans, whose process lives on without a connection.

An orphan is what a client becomes when its connection or the daemon ended before its tensors did. Bookkeeping only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .errors import StoreProtocolError
from .processes import ProcessId

MAX_SESSION_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A client across its connections: its process, and the name it gave itself ("" before it did)."""

    process: ProcessId
    session: str = ""


class Peers:
    """Clients by the number that the server gave them."""

    def __init__(self) -> None:
        self._holders: dict[int, Holder] = {}
        self._orphans: set[int] = set()
        self._named: set[int] = set()

    @property
    def orphans(self) -> frozenset[int]:
        return frozenset(self._orphans)

    def connect(self, client: int, process: ProcessId) -> None:
        self._holders[client] = Holder(process=process)

    def name(self, client: int, session: str) -> None:
        """The client says who it is. Raises StoreProtocolError for a long name, or another one than before."""
        known = self._holders[client]
        if client not in self._named:
            if len(session) > MAX_SESSION_CHARACTERS:
                raise StoreProtocolError(f"the name of a session has at most {MAX_SESSION_CHARACTERS} characters")
            self._named.add(client)
            self._holders[client] = replace(known, session=session)
        elif session != known.session:
            raise StoreProtocolError("a connection belongs to the session that it named first; connect once for each")

    def orphan(self, client: int, holder: Holder) -> None:
        """The client has no connection (any more), but its process has leases."""
        self._holders[client] = holder
        self._orphans.add(client)

    def forget(self, client: int) -> None:
        self._holders.pop(client, None)
        self._orphans.discard(client)
        self._named.discard(client)

    def holder_of(self, client: int) -> Holder:
        return self._holders[client]

    def orphans_of(self, holder: Holder) -> list[int]:
        """In the order of their numbers."""
        return sorted(client for client in self._orphans if self._holders[client] == holder)
