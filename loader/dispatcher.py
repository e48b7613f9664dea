"""Turns requests into calls of the keepers, and what goes wrong with them into answers.

A request that names a checkpoint is asked once the checkpoint's files are known, which takes as long as its server,
or the disk, takes to tell; one that names a GPU once the GPUs are known.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from . import _core
from .checkpoint import Checkpoint, is_url
from .device_tier import DeviceTier
from .errors import LoaderError, StoreCancelled, StoreError
from .estimator import Throttles
from .keeper import Keeper
from .lookups import Found, Lookups
from .opener import Resolver, known_as
from .receipts import Tier
from .remote.urls import without_secrets
from .replies import ArenaMapped, Estimated, Failed, Reply
from .reports import ArenaFacts
from .requests import (
    Attach,
    AttachDevice,
    Cancel,
    Evict,
    GetEstimate,
    GetStatus,
    MapArena,
    PathQuestion,
    Pin,
    Prefetch,
    Reclaim,
    ReclaimDevices,
    Release,
    ReleaseDevice,
    Request,
    Unpin,
)
from .residency import likely_tier

log = logging.getLogger("serverless_triton.store")

# No path: who looks for the GPUs waits behind others who do.
THE_GPUS = "GPUs:"


class Host(Protocol):
    """What the dispatcher needs of the server."""

    def reply(self, client: int, message: Reply, descriptors: Sequence[int] = ()) -> None: ...

    def arena(self) -> ArenaFacts: ...

    def expect_progress(self) -> None:
        """The keeper has somebody to tell progress to."""


class Dispatcher:
    """Asks the keepers on behalf of clients. All happens on the loop."""

    def __init__(
        self,
        keeper: Keeper,
        devices: DeviceTier,
        resolver: Resolver,
        lookups: Lookups,
        arena: _core.Arena,
        throttles: Throttles,
        host: Host,
    ) -> None:
        self._keeper = keeper
        self._devices = devices
        self._resolver = resolver
        self._lookups = lookups
        self._arena = arena
        self._throttles = throttles
        self._host = host

    def handle(self, client: int, request: Request) -> None:
        """The answer, if the request has one, follows now or later, and is Failed for whatever goes wrong."""
        self._guarded(client, request, lambda: self._dispatch(client, request))

    def refuse(self, client: int, request: Request, error: LoaderError) -> None:
        """Answers that it failed."""
        request_id = 0 if isinstance(request, (Release, ReleaseDevice)) else request.id
        self._host.reply(client, Failed(id=request_id, error=type(error).__name__, message=str(error)))

    def _guarded(self, client: int, request: Request, act: Callable[[], None]) -> None:
        try:
            act()
        except LoaderError as error:
            self.refuse(client, request, error)
        except Exception as error:
            # A bug of ours must not end the store, which holds every worker's weights.
            shown = _shown(request)
            log.exception("request crashed: %s", shown)
            self.refuse(client, request, StoreError(f"the store failed at {shown}: {error!r}"))

    def _dispatch(self, client: int, request: Request) -> None:
        now_s = time.monotonic()
        if isinstance(request, PathQuestion):
            self._open(client, request)
        elif isinstance(request, Unpin | Evict):
            self._look(client, request, partial(known_as, request.path), partial(self._let_go, client, request))
        elif isinstance(request, GetStatus):
            self._keeper.status(client, request.id)
        elif isinstance(request, MapArena):
            self._host.reply(client, self._arena_mapped(request), [self._arena.client_fd()])
        elif isinstance(request, Reclaim):
            self._keeper.reclaim(client, request.id, request.arena_id, request.session, request.leases, now_s)
        elif isinstance(request, Cancel):
            self._cancel(client, request.id, now_s)
        elif isinstance(request, Release):
            self._keeper.release(client, request.image_id, now_s)
        else:
            self._dispatch_device(client, request, now_s)

    def _dispatch_device(self, client: int, request: ReclaimDevices | ReleaseDevice, now_s: float) -> None:
        if isinstance(request, ReclaimDevices):
            self._devices.requests.reclaim(client, request, now_s)
        else:
            self._devices.requests.release(client, request.image_id, now_s)

    def _open(self, client: int, request: PathQuestion) -> None:
        then = partial(self._opened, client, request)
        if not is_url(request.path):
            self._look(client, request, partial(Checkpoint.open, request.path), then)
            return

        def opened(checkpoint: Checkpoint) -> None:
            self._guarded(client, request, lambda: then(checkpoint))

        self._resolver.open(client, request.id, request.path, opened, partial(self.refuse, client, request))

    def _look(
        self,
        client: int,
        request: PathQuestion | Unpin | Evict,
        look: Callable[[], Found],
        then: Callable[[Found], None],
        subject: str = "",
    ) -> None:
        """Goes on with `then` once `look`, which may block, has found something at the subject, the request's path."""

        def found(what: Found) -> None:
            self._guarded(client, request, lambda: then(what))

        failed = partial(self.refuse, client, request)
        self._lookups.ask(client, request.id, subject or request.path, look, found, failed)

    def _opened(self, client: int, request: PathQuestion, checkpoint: Checkpoint) -> None:
        names_device = isinstance(request, AttachDevice) or (isinstance(request, GetEstimate) and request.device)
        if not names_device or not self._devices.must_look:
            self._ask(client, request, checkpoint)
            return

        def found(devices: tuple[str, ...]) -> None:
            self._devices.have(devices)
            self._ask(client, request, checkpoint)

        self._look(client, request, self._devices.look, found, subject=THE_GPUS)

    def _ask(self, client: int, request: PathQuestion, checkpoint: Checkpoint) -> None:
        now_s = time.monotonic()
        if isinstance(request, Attach):
            if request.progress:
                self._host.expect_progress()
            self._keeper.attach(client, request.id, request.session, checkpoint, now_s, progress=request.progress)
        elif isinstance(request, AttachDevice):
            self._devices.requests.attach(client, request, checkpoint, now_s)
        elif isinstance(request, Prefetch):
            self._keeper.prefetch(client, request.id, checkpoint, now_s)
        elif isinstance(request, Pin):
            self._keeper.pin(client, request.id, checkpoint, now_s)
        else:
            assert isinstance(request, GetEstimate)
            estimate = partial(self._estimate, client, request, checkpoint)
            self._look(client, request, partial(self._tier_of, checkpoint), estimate)

    def _tier_of(self, checkpoint: Checkpoint) -> Tier:
        # A throttled reader does not look at the page cache, which all nodes of a machine share.
        is_throttled = bool(self._throttles.ssd_bytes_per_second)
        return "ssd" if is_throttled and not checkpoint.is_remote else likely_tier(checkpoint)

    def _estimate(self, client: int, request: GetEstimate, checkpoint: Checkpoint, tier: Tier) -> None:
        ask = partial(self._keeper.estimate, request_id=request.id, checkpoint=checkpoint, tier=tier)
        if request.device:
            estimate = self._devices.estimate(checkpoint, request.device, ask)
            self._host.reply(client, Estimated(id=request.id, estimate=estimate))
        else:
            ask(client)

    def _let_go(self, client: int, request: Unpin | Evict, path: str) -> None:
        now_s = time.monotonic()
        if isinstance(request, Unpin):
            self._keeper.unpin(client, request.id, path, now_s)
            return
        on_devices = self._devices.requests.evictable(path)
        self._keeper.evict(client, request.id, path, now_s, on_devices=on_devices)
        self._devices.requests.evict(path)

    def _arena_mapped(self, request: MapArena) -> ArenaMapped:
        return ArenaMapped(id=request.id, arena_id=self._host.arena().id, bytes=self._arena.bytes)

    def _cancel(self, client: int, request_id: int, now_s: float) -> None:
        if self._resolver.cancel(client, request_id) or self._lookups.cancel(client, request_id):
            error = StoreCancelled("the request was cancelled; ask again if it is still wanted")
            self._host.reply(client, Failed(id=request_id, error=type(error).__name__, message=str(error)))
        elif not self._devices.requests.cancel(client, request_id, now_s):
            self._keeper.cancel(client, request_id, now_s)


def _shown(request: Request) -> Request:
    """The request as it may be logged: a URL that was not checked yet may hold a secret."""
    if isinstance(request, PathQuestion | Unpin | Evict):
        return replace(request, path=without_secrets(request.path))
    return request
