"""The leases that a client has, each for as long as any tensor over its memory is alive.

An arena's bytes may be used for another image once the lease on them ends, so it ends with the last of its slices, not
with the connection or the Store. Finalizers notice that, in whichever thread the last reference goes.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .messages import LeaseCount, Release
from .store_link import StoreLink

if TYPE_CHECKING:
    from ._core import ArenaSlice


@dataclass(slots=True)
class _Lease:
    image_id: int
    slices: int


class HeldLeases:
    """The leases on images of one arena, told to the store through `link` when they end."""

    def __init__(self, link: StoreLink) -> None:
        self._link = link
        self._counts: Counter[int] = Counter()
        # One entry a slice that is gone; what is counted, is counted under the lock.
        self._gone: deque[_Lease] = deque()
        self._counting = threading.Lock()
        self._closes_link = False
        self._process = os.getpid()

    def hold(self, image_id: int, slices: Sequence[ArenaSlice]) -> None:
        """A lease on an image, until all slices are gone."""
        lease = _Lease(image_id, len(slices))
        with self._counting:
            self._counts[image_id] += 1
        for memory in slices:
            finalizer = weakref.finalize(memory, self._slice_gone, lease)
            finalizer.atexit = False  # the store sees the process end
        self._tell()

    @property
    def counts(self) -> tuple[LeaseCount, ...]:
        """All that there are, whether or not the store was told of the end of others."""
        counts = sorted(self._counts.items())
        return tuple(LeaseCount(image_id=image_id, count=count) for image_id, count in counts if count)

    def reconnect(self, link: StoreLink, reclaimed: Sequence[LeaseCount]) -> None:
        """The store believes in these leases, over another link; some may have ended since it was asked."""
        with self._counting:
            self._link = link
            for lease in reclaimed:
                for _ in range(lease.count - self._counts[lease.image_id]):
                    link.post(Release(image_id=lease.image_id))
        self._tell()

    def close_link_after_last(self) -> None:
        """Nobody else uses the link any more."""
        self._closes_link = True
        self._close_if_last()

    def _slice_gone(self, lease: _Lease) -> None:
        self._gone.append(lease)
        self._tell()

    def _tell(self) -> None:
        if os.getpid() != self._process:
            return  # a child made by fork() drops copies: the leases are its parent's
        # As StoreLink._drain: a finalizer may run within this very method.
        while self._gone and self._counting.acquire(blocking=False):
            try:
                while self._gone:
                    self._count(self._gone.popleft())
            finally:
                self._counting.release()
        self._close_if_last()

    def _count(self, lease: _Lease) -> None:
        lease.slices -= 1
        if not lease.slices:
            self._counts[lease.image_id] -= 1
            self._link.post(Release(image_id=lease.image_id))

    def _close_if_last(self) -> None:
        if self._closes_link and not self._counts.total():
            self._link.close()
