"""Sees processes end: one pidfd each, in the server's selector, for as long as anybody asks.

For the server's loop alone. What a process's end means is for the keepers.
"""

from __future__ import annotations

import logging
import os
import selectors
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from .processes import ProcessId, open_process

log = logging.getLogger("serverless_triton.store")

# Where a process cannot be watched for now, for want of descriptors.
RETRY_S = 1.0


@dataclass(slots=True)
class _Watch:
    descriptor: int | None = None
    clients: Counter[int] = field(default_factory=Counter)


class Watcher:
    """`ended` hears of each client once its process has ended; `later` calls back after some seconds."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        ended: Callable[[int], None],
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._selector = selector
        self._ended = ended
        self._later = later
        self._watches: dict[ProcessId, _Watch] = {}

    def watch(self, client: int, process: ProcessId) -> None:
        """`ended` follows, from the loop; once, however often a client's process is watched."""
        watch = self._watches.get(process)
        if watch is None:
            watch = self._watches[process] = _Watch()
            self._open(process, watch)
        watch.clients[client] += 1

    def unwatch(self, client: int) -> None:
        """Undoes one watch() of the client, if there is one."""
        for process, watch in list(self._watches.items()):
            watch.clients -= Counter({client: 1})
            if not watch.clients:
                self._end(process)

    def _open(self, process: ProcessId, watch: _Watch) -> None:
        try:
            watch.descriptor = open_process(process)
        except OSError as error:
            # It may live: its leases must not end for our want of descriptors.
            log.warning("cannot watch process %d for now: %s", process.pid, error)
            self._later(RETRY_S, partial(self._retry, process, watch))
            return
        if watch.descriptor is None:
            self._later(0.0, partial(self._process_ended, process, watch))
        else:
            ended = partial(self._process_ended, process, watch)
            self._selector.register(watch.descriptor, selectors.EVENT_READ, ended)

    def _retry(self, process: ProcessId, watch: _Watch) -> None:
        if self._watches.get(process) is watch:
            self._open(process, watch)

    def _process_ended(self, process: ProcessId, watch: _Watch) -> None:
        if self._watches.get(process) is not watch:
            return  # unwatched meanwhile
        self._end(process)
        for client in sorted(watch.clients):
            self._ended(client)

    def _end(self, process: ProcessId) -> None:
        descriptor = self._watches.pop(process).descriptor
        if descriptor is not None:
            self._selector.unregister(descriptor)
            os.close(descriptor)
