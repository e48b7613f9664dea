"""What the device keeper may do to the world, and a world that only writes it down."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Protocol

from .device_images import DeviceImage
from .device_state import DeviceState
from .errors import StoreFull
from .processes import ProcessId
from .replies import DeviceAttached, Reply


class DeviceEffects(Protocol):
    """None of these blocks for long or calls back. Each work that is begun ends in one of the two reports named."""

    def reply(self, client: int, message: Reply) -> None:
        """Sends a reply; to a client that is gone, nothing."""

    def hand_over(self, client: int, message: DeviceAttached) -> None:
        """As reply(), with a descriptor of the image's memory."""

    def known_devices(self) -> tuple[str, ...]:
        """The names of the GPUs that there are."""

    def save_devices(self, state: DeviceState) -> None:
        """Returns once a daemon that takes over from now on would find this state. Raises StoreFull as Effects does."""

    def watch(self, client: int, process: ProcessId) -> None:
        """process_ended(client) follows when that process ends, soon where it has already."""

    def unwatch(self, client: int) -> None:
        """Undoes a watch()."""

    def allocate(self, image: DeviceImage) -> None:
        """Takes memory of the device: allocated or failed."""

    def lease_dram(self, image: DeviceImage) -> None:
        """Has the store bring the checkpoint into DRAM and keep it there: loaded or failed."""

    def stop_waiting_for_dram(self, image: DeviceImage) -> None:
        """Nobody wants the image any more: failed follows, or loaded all the same."""

    def release_dram(self, image: DeviceImage) -> None:
        """The copy is done with the bytes in DRAM."""

    def copy(self, image: DeviceImage) -> None:
        """Copies what has not been copied while it was read: copied or failed."""

    def free(self, image: DeviceImage) -> None:
        """Gives whatever memory the image has back: freed."""


@dataclass(slots=True)
class RecordedDeviceEffects:
    """The fake: tests look at what was asked for, and play the world by calling the keeper back.

    `most_leases` is how many there is room to save.
    """

    known: tuple[str, ...] = ("GPU-1", "GPU-2")
    replies: list[tuple[int, Reply]] = field(default_factory=list)
    handed_over: list[tuple[int, DeviceAttached]] = field(default_factory=list)
    saved: list[DeviceState] = field(default_factory=list)
    watched: list[tuple[int, ProcessId]] = field(default_factory=list)
    unwatched: list[int] = field(default_factory=list)
    done: list[tuple[str, int]] = field(default_factory=list)
    most_leases: int = sys.maxsize

    def reply(self, client: int, message: Reply) -> None:
        self.replies.append((client, message))

    def hand_over(self, client: int, message: DeviceAttached) -> None:
        self.handed_over.append((client, message))

    def known_devices(self) -> tuple[str, ...]:
        return self.known

    def save_devices(self, state: DeviceState) -> None:
        if len(state.leases) > self.most_leases:
            raise StoreFull(f"there is room for {self.most_leases} leases")
        self.saved.append(state)

    def watch(self, client: int, process: ProcessId) -> None:
        self.watched.append((client, process))

    def unwatch(self, client: int) -> None:
        self.unwatched.append(client)

    def allocate(self, image: DeviceImage) -> None:
        self.done.append(("allocate", image.id))

    def lease_dram(self, image: DeviceImage) -> None:
        self.done.append(("lease_dram", image.id))

    def stop_waiting_for_dram(self, image: DeviceImage) -> None:
        self.done.append(("stop_waiting_for_dram", image.id))

    def release_dram(self, image: DeviceImage) -> None:
        self.done.append(("release_dram", image.id))

    def copy(self, image: DeviceImage) -> None:
        self.done.append(("copy", image.id))

    def free(self, image: DeviceImage) -> None:
        self.done.append(("free", image.id))
