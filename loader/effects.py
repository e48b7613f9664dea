"""What the keeper may do to the world, and a world that only writes it down."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .cache import Image
from .errors import StoreFull
from .holes import Move
from .processes import ProcessId
from .receipts import Tier
from .replies import Reply
from .reports import ArenaFacts
from .state import StoreState
from .store_status import DeviceStatus, SsdCacheStatus


class Effects(Protocol):
    """What the keeper may do to the world. None of these blocks for long or calls back."""

    def reply(self, client: int, message: Reply) -> None:
        """Sends a reply; to a client that is gone, nothing."""

    def save(self, state: StoreState) -> None:
        """Returns once a daemon that takes over from now on would find this state.

        Raises StoreFull where it has more leases than there is room for; that daemon then finds the state before.
        """

    def watch(self, client: int, process: ProcessId) -> None:
        """process_ended(client) follows when that process ends, soon where it has already."""

    def unwatch(self, client: int) -> None:
        """Undoes a watch()."""

    def start_load(self, image: Image) -> None:
        """Begins a load; load_finished or load_failed follows."""

    def cancel_load(self, image: Image) -> None:
        """Asks the load, paused or not, to stop; load_failed or load_finished follows all the same."""

    def pause_load(self, image: Image) -> None:
        """Asks the running load to wait for resume_load or cancel_load; it may finish all the same."""

    def resume_load(self, image: Image) -> None:
        """Lets a paused load go on."""

    def start_moves(self, moves: Sequence[Move]) -> None:
        """Moves bytes in this order; moved follows."""

    def read_bytes(self, image: Image) -> int:
        """How far the image's load has come; 0 before it starts."""

    def arena(self) -> ArenaFacts:
        """What the arena is made of."""

    def ssd_cache(self) -> SsdCacheStatus:
        """What copies of remote checkpoints there are."""

    def devices(self) -> tuple[DeviceStatus, ...]:
        """What is kept on GPUs."""


# What so little of a load came from elsewhere hardly changes its speed.
MIN_TIER_SHARE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """Where a finished load took most of its bytes from, which share of them, and whether all passed their hashes."""

    tier: Tier
    direct_io: bool
    verified: bool
    tier_share: float = 1.0

    @property
    def is_of_one_tier(self) -> bool:
        """Whether its duration says how fast the tier is."""
        return self.tier_share >= MIN_TIER_SHARE


@dataclass(slots=True)
class RecordedEffects:
    """The fake: tests look at what the keeper asked for, and play the world by calling it back.

    `progress` is how far every load that was started has come, `most_leases` how many there is room to save.
    """

    replies: list[tuple[int, Reply]] = field(default_factory=list)
    saved: list[StoreState] = field(default_factory=list)
    watched: list[tuple[int, ProcessId]] = field(default_factory=list)
    unwatched: list[int] = field(default_factory=list)
    started: list[Image] = field(default_factory=list)
    cancelled: list[Image] = field(default_factory=list)
    paused: list[Image] = field(default_factory=list)
    resumed: list[Image] = field(default_factory=list)
    moves: list[Sequence[Move]] = field(default_factory=list)
    progress: int = 0
    most_leases: int = sys.maxsize

    def reply(self, client: int, message: Reply) -> None:
        self.replies.append((client, message))

    def save(self, state: StoreState) -> None:
        if len(state.leases) > self.most_leases:
            raise StoreFull(f"there is room for {self.most_leases} leases")
        self.saved.append(state)

    def watch(self, client: int, process: ProcessId) -> None:
        self.watched.append((client, process))

    def unwatch(self, client: int) -> None:
        self.unwatched.append(client)

    def start_load(self, image: Image) -> None:
        self.started.append(image)

    def cancel_load(self, image: Image) -> None:
        self.cancelled.append(image)

    def pause_load(self, image: Image) -> None:
        self.paused.append(image)

    def resume_load(self, image: Image) -> None:
        self.resumed.append(image)

    def start_moves(self, moves: Sequence[Move]) -> None:
        self.moves.append(moves)

    def read_bytes(self, image: Image) -> int:
        return self.progress if image in self.started else 0

    def arena(self) -> ArenaFacts:
        return ArenaFacts(id="arena", kind="4k", page_bytes=4096, interleaved_nodes=(), prefaulted_bytes=0)

    def ssd_cache(self) -> SsdCacheStatus:
        return SsdCacheStatus(capacity_bytes=0, used_bytes=0, entries=0, urls=(), problem="")

    def devices(self) -> tuple[DeviceStatus, ...]:
        return ()

    def to(self, client: int) -> list[Reply]:
        """The replies to one client."""
        return [message for receiver, message in self.replies if receiver == client]
