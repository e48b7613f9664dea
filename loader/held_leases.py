"""The leases that a client has, each for as long as any tensor over its memory is alive.

An arena's bytes may be used for another image once the lease on them ends, so it ends with the last of its slices, not
with the connection or the Store. Finalizers notice that, in whichever thread the last reference goes.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .requests import LeaseCount, Release, ReleaseDevice
from .store_link import StoreLink

if TYPE_CHECKING:
    from ._core import ArenaSlice, DeviceMemory

# What is sent when a lease ends, and with that its image and where it lies.
Ending = Release | ReleaseDevice


@dataclass(slots=True)
class _Lease:
    """`tell_later` hears of an end that the store could not be told of; it keeps who can tell it alive."""

    ending: Ending
    parts: int
    tell_later: Callable[[], None]


class HeldLeases:
    """The leases on images of one arena and of GPUs, told to the store through `link` when they end."""

    def __init__(self, link: StoreLink, tell_later: Callable[[], None]) -> None:
        """`tell_later`, a method, is called by finalizers when the first lease ended that a lost store believes in."""
        self._link = link
        # Not to be kept alive by what it keeps alive itself, but for as long as there are leases.
        self._tell_later = weakref.WeakMethod(tell_later)
        self._has_untold = False
        self._counts: Counter[Ending] = Counter()
        # One entry a part that is gone; what is counted, is counted under the lock.
        self._gone: deque[_Lease] = deque()
        self._counting = threading.Lock()
        self._closes_link = False
        self._process = os.getpid()

    def hold(self, ending: Ending, parts: Sequence[ArenaSlice | DeviceMemory]) -> None:
        """A lease on an image, until all parts of its memory are gone."""
        tell_later = self._tell_later()
        assert tell_later is not None, "who holds a lease is there"
        lease = _Lease(ending, len(parts), tell_later)
        with self._counting:
            self._counts[ending] += 1
        for memory in parts:
            finalizer = weakref.finalize(memory, self._part_gone, lease)
            finalizer.atexit = False  # the store sees the process end
        self._tell()

    @property
    def has_untold(self) -> bool:
        """Whether the store, as it was when it was lost, believes in leases that have ended."""
        return self._has_untold

    @property
    def arena_counts(self) -> tuple[LeaseCount, ...]:
        """All in DRAM that there are, whether or not the store was told of the end of others."""
        return self._counts_of(Release)

    @property
    def device_counts(self) -> tuple[LeaseCount, ...]:
        """As arena_counts, on GPUs."""
        return self._counts_of(ReleaseDevice)

    def reconnect(self, link: StoreLink, in_dram: Sequence[LeaseCount], on_devices: Sequence[LeaseCount]) -> None:
        """The store believes in these leases, over another link; some may have ended since it was asked."""
        reclaimed: list[tuple[Ending, int]] = [(Release(image_id=lease.image_id), lease.count) for lease in in_dram]
        reclaimed += [(ReleaseDevice(image_id=lease.image_id), lease.count) for lease in on_devices]
        with self._counting:
            self._link = link
            self._has_untold = False
            for ending, count in reclaimed:
                for _ in range(count - self._counts[ending]):
                    link.post(ending)
        self._tell()

    def close_link_after_last(self) -> None:
        """Nobody else uses the link any more."""
        self._closes_link = True
        self._close_if_last()

    def _part_gone(self, lease: _Lease) -> None:
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
        lease.parts -= 1
        if not lease.parts:
            self._counts[lease.ending] -= 1
            if not self._counts[lease.ending]:
                del self._counts[lease.ending]
            if not self._link.post(lease.ending) and not self._has_untold:
                self._has_untold = True
                lease.tell_later()

    def _counts_of(self, kind: type[Ending]) -> tuple[LeaseCount, ...]:
        counts = sorted((ending.image_id, n) for ending, n in self._counts.items() if isinstance(ending, kind))
        return tuple(LeaseCount(image_id=image_id, count=count) for image_id, count in counts)

    def _close_if_last(self) -> None:
        if self._closes_link and not self._counts.total():
            self._link.close()
