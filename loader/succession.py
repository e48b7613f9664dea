"""Leases beyond a connection and beyond a daemon: who holds them, what is saved of them, what a successor takes over.

A lease belongs to a session of a process. While that has no connection its leases are an orphan's, until the session
reclaims them or the process ends. Pure but for Effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .cache import Image, ImageCache, ImageState
from .effects import Effects
from .errors import StoreFull
from .layout import Piece
from .peers import Holder, Peers
from .processes import ProcessId
from .quarantine import Quarantine
from .requests import LeaseCount
from .state import LeaseRecord, StoreState


class Succession:
    """The holders of one cache's leases, and its state as a successor would find it."""

    def __init__(self, cache: ImageCache, quarantine: Quarantine, peers: Peers, effects: Effects) -> None:
        self._cache = cache
        self._quarantine = quarantine
        self._peers = peers
        self._effects = effects
        self._saved: StoreState | None = None
        # By image and client; the same objects for as long as they are true.
        self._records: dict[tuple[int, int], LeaseRecord] = {}

    def adopt(self, state: StoreState, first_client: int) -> int:
        """Takes over what a predecessor left, numbering lease holders from `first_client`; returns the next number."""
        for record in state.images:
            self._cache.adopt(record)
        self._cache.adopt_next_id(state.next_image_id)
        self._quarantine.begin(state.in_flight)
        numbers: dict[Holder, int] = {}
        for lease in state.leases:
            orphan = numbers.setdefault(lease.holder, first_client + len(numbers))
            self._cache.adopt_lease(lease.image_id, orphan, lease.count)
        for holder, orphan in numbers.items():
            self._make_orphan(orphan, holder)
        self.save()
        return first_client + len(numbers)

    def connect(self, client: int, process: ProcessId) -> None:
        """A client is there."""
        self._peers.connect(client, process)

    def name(self, client: int, session: str) -> None:
        """The client says which session it goes on with."""
        self._peers.name(client, session)

    def disconnect(self, client: int) -> None:
        """The connection is gone: its leases end with its process, or it reclaims them."""
        if self._cache.is_leased_by(client):
            self._make_orphan(client, self._peers.holder_of(client))
        else:
            self._peers.forget(client)

    def process_ended(self, client: int) -> None:
        """The process of an orphan is gone, and its tensors with it."""
        self._cache.release_all(client)
        self._peers.forget(client)
        self.save()

    def reclaim(self, client: int, leases: Sequence[LeaseCount]) -> tuple[LeaseCount, ...]:
        """Gives a client those leases that its session has without a connection, and ends the others of it."""
        orphans = self._peers.orphans_of(self._peers.holder_of(client))
        taken = [replace(lease, count=self._pass_on(lease, orphans, client)) for lease in leases]
        for orphan in orphans:
            self._cache.release_all(orphan)
            self._peers.forget(orphan)
            self._effects.unwatch(orphan)
        self.save()
        return tuple(lease for lease in taken if lease.count)

    def lease(self, image: Image, client: int) -> None:
        """Returns once a successor would know of the lease. Raises StoreFull where it could not, and there is none."""
        self._cache.lease(image, client)
        try:
            self.save()
        except StoreFull:
            self._cache.release(image.id, client)
            raise

    def save(self) -> None:
        """Returns once a successor would find things as they are now."""
        state = StoreState(
            arena_id=self._effects.arena().id,
            next_image_id=self._cache.next_id,
            images=self._cache.records(),
            leases=self._leases(),
            in_flight=self._in_flight(),
        )
        if state != self._saved:
            self._effects.save(state)
            self._saved = state

    def _make_orphan(self, client: int, holder: Holder) -> None:
        self._peers.orphan(client, holder)
        self._effects.watch(client, holder.process)

    def _pass_on(self, lease: LeaseCount, orphans: Sequence[int], client: int) -> int:
        taken = 0
        for orphan in orphans:
            taken += self._cache.pass_on(lease.image_id, orphan, client, lease.count - taken)
        return taken

    def _in_flight(self) -> tuple[Piece, ...]:
        loading = (image for image in self._cache.images if image.state is ImageState.LOADING)
        return (*self._quarantine.pieces, *(piece for image in loading for piece in image.pieces))

    def _leases(self) -> tuple[LeaseRecord, ...]:
        self._records = {
            (image.id, client): self._record_of(image.id, client, count)
            for image in self._cache.images
            for client, count in image.leases.items()
        }
        return tuple(self._records.values())

    def _record_of(self, image_id: int, client: int, count: int) -> LeaseRecord:
        holder, known = self._peers.holder_of(client), self._records.get((image_id, client))
        if known is not None and known.holder is holder and known.count == count:
            return known
        return LeaseRecord(image_id=image_id, holder=holder, count=count)
