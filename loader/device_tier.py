"""The store's GPU tier as one part of the server: carries out the device keeper's effects, says what came of them.

Towards the keeper it is one more client, number COPIER: what is copied is leased in DRAM until it has arrived. All of
it but streaming() and look() is called on the server's loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from . import _core
from .checkpoint import Checkpoint
from .device_images import DeviceImage
from .device_keeper import DeviceKeeper
from .device_state import DeviceState
from .device_work import DeviceWork
from .errors import LoaderError, error_of
from .keeper import Keeper
from .processes import ProcessId, process_of
from .receipts import Estimate
from .replies import Attached, DeviceAttached, Estimated, Failed, Progress, Reply

# The client that the keeper knows this tier as; the server numbers others from 1.
COPIER = 0


class Host(Protocol):
    """What the tier needs of the server."""

    def reply(self, client: int, message: Reply, descriptors: Sequence[int] = ()) -> None: ...

    def watch(self, client: int, process: ProcessId) -> None: ...

    def unwatch(self, client: int) -> None: ...

    def save_devices(self, state: DeviceState) -> None: ...

    def post(self, event: Callable[[], None]) -> None: ...

    def expect_progress(self) -> None:
        """The keeper has somebody to tell progress to."""


class DeviceTier:
    """`requests` is what the server hands requests to."""

    def __init__(self, keeper: Keeper, arena: _core.Arena, budget_bytes: int, host: Host) -> None:
        self.requests = DeviceKeeper(budget_bytes, self)
        self._keeper = keeper
        self._host = host
        self._work = DeviceWork(arena, self, host.post)
        self._leased: dict[int, Attached] = {}
        self._arriving: dict[int, DeviceImage] = {}
        self._estimates: list[Estimate] = []
        self._has_budget = budget_bytes > 0
        self._known_devices: tuple[str, ...] | None = None
        keeper.connect(COPIER, process_of(os.getpid()))

    def streaming(self, checkpoint: Checkpoint) -> AbstractContextManager[_core.ChunkSink | None]:
        """Around reading a checkpoint: where its chunks should go. On any thread."""
        return self._work.streaming(checkpoint)

    @property
    def must_look(self) -> bool:
        """Whether the devices must be looked for before one is asked for; once, since they stay the same."""
        return self._has_budget and self._known_devices is None

    @staticmethod
    def look() -> tuple[str, ...]:
        """The devices that there are. Opens the driver, which may take seconds; on any thread.

        Raises DeviceUnavailable.
        """
        return tuple(_core.gpu_uuids())

    def have(self, devices: tuple[str, ...]) -> None:
        """What look() saw."""
        self._known_devices = devices

    def estimate(self, checkpoint: Checkpoint, device: str, ask_keeper: Callable[[int], None]) -> Estimate:
        """How long an attach on the device would take; `ask_keeper` has the keeper answer a client about DRAM."""

        def into_dram() -> Estimate:
            ask_keeper(COPIER)
            return self._estimates.pop()

        return self.requests.estimate(checkpoint, device, into_dram)

    def hear(self, message: Reply) -> None:
        """What the keeper answers COPIER, in the middle of its own decisions."""
        if isinstance(message, Estimated):
            self._estimates.append(message.estimate)
        else:
            self._host.post(partial(self._heard, message))

    def close(self, deadline_s: float) -> None:
        """Answers all who wait, cancels what runs and waits for it, until `deadline_s` of time.monotonic() at most."""
        self.requests.shut_down()
        self._work.close(deadline_s)

    # Effects of the device keeper

    def reply(self, client: int, message: Reply) -> None:
        self._host.reply(client, message)

    def hand_over(self, client: int, message: DeviceAttached) -> None:
        self._host.reply(client, message, [self._work.descriptor_of(message.image_id)])

    def known_devices(self) -> tuple[str, ...]:
        assert self._known_devices is not None
        return self._known_devices

    def save_devices(self, state: DeviceState) -> None:
        self._host.save_devices(state)

    def watch(self, client: int, process: ProcessId) -> None:
        self._host.watch(client, process)

    def unwatch(self, client: int) -> None:
        self._host.unwatch(client)

    def allocate(self, image: DeviceImage) -> None:
        self._work.allocate(image)

    def lease_dram(self, image: DeviceImage) -> None:
        assert image.checkpoint is not None
        self._arriving[image.id] = image
        self._work.expect(image)
        self._host.expect_progress()
        try:
            self._keeper.attach(COPIER, image.id, "", image.checkpoint, time.monotonic(), progress=True)
        except LoaderError as error:
            self._host.post(partial(self._failed_to_load, image, error))

    def stop_waiting_for_dram(self, image: DeviceImage) -> None:
        self._keeper.cancel(COPIER, image.id, time.monotonic())

    def release_dram(self, image: DeviceImage) -> None:
        self._keeper.release(COPIER, self._leased.pop(image.id).image_id, time.monotonic())

    def copy(self, image: DeviceImage) -> None:
        self._work.copy(image, self._leased[image.id].extents)

    def free(self, image: DeviceImage) -> None:
        self._work.free(image)

    # What became of them

    def on_allocated(self, image: DeviceImage) -> None:
        self.requests.allocated(image, time.monotonic())

    def on_copied(self, image: DeviceImage) -> None:
        self.requests.copied(image, time.monotonic())

    def on_device_failed(self, image: DeviceImage, error: LoaderError) -> None:
        self.requests.failed(image, error, time.monotonic())

    def on_freed(self, image: DeviceImage) -> None:
        self.requests.freed(image, time.monotonic())
        self._keeper.freed_on_device(image.id)

    def _heard(self, message: Reply) -> None:
        image = self._arriving[message.id]
        if isinstance(message, Progress):
            self.requests.loading(image, message)
        elif isinstance(message, Failed):
            self._failed_to_load(image, error_of(message.error, message.message))
        else:
            assert isinstance(message, Attached)
            del self._arriving[image.id]
            self._leased[image.id] = message
            self.requests.loaded(image, message.receipt, time.monotonic())

    def _failed_to_load(self, image: DeviceImage, error: LoaderError) -> None:
        del self._arriving[image.id]
        self.requests.failed(image, error, time.monotonic())
