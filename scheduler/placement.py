"""What fits on one server, and which idle replicas must go for it (pure).

A replica lies on one device or in equal parts on several, so what counts is the room on each device and not their sum.
Weights of one checkpoint count once in DRAM, however many replicas use them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serverless_triton.scheduler.admission import ReplicaId
from serverless_triton.scheduler.view import ModelView, ReplicaView, ServerView


@dataclass(slots=True)
class Room:
    """What is free on a server while replicas come and go on paper. `free` is by device, below 0 where too much is
    there.
    """

    server: ServerView
    ids: tuple[int, ...]
    free: list[int]
    dram_free: int
    checkpoints: Counter[str]

    @classmethod
    def of(cls, server: ServerView, replicas: Iterable[ReplicaView] = ()) -> Room:
        devices = server.devices
        room = cls(
            server,
            tuple(device.id for device in devices) or (0,),
            [device.memory_bytes for device in devices] or [server.device_memory_bytes],
            server.dram_bytes,
            Counter(),
        )
        for replica in replicas:
            room.add(replica)
        return room

    def copy(self) -> Room:
        return Room(self.server, self.ids, self.free.copy(), self.dram_free, self.checkpoints.copy())

    def add(self, replica: ReplicaView) -> None:
        self._book(replica, 1)
        if not self.checkpoints[replica.checkpoint]:
            self.dram_free -= replica.checkpoint_bytes
        self.checkpoints[replica.checkpoint] += 1

    def remove(self, replica: ReplicaView) -> None:
        self._book(replica, -1)
        self.checkpoints[replica.checkpoint] -= 1
        if not self.checkpoints[replica.checkpoint]:
            self.dram_free += replica.checkpoint_bytes

    def _book(self, replica: ReplicaView, sign: int) -> None:
        if self.server.device_holds_weights:
            device_bytes = replica.device_bytes + replica.checkpoint_bytes
            self.dram_free -= sign * replica.host_bytes
        else:
            device_bytes = replica.device_bytes + replica.host_bytes
        if len(self.free) == 1:
            self.free[0] -= sign * device_bytes
            return
        places = self.places(replica)
        share = sign * -(-device_bytes // len(places))
        for place in places:
            self.free[place] -= share

    def places(self, replica: ReplicaView) -> Sequence[int]:
        """Where it lies, as indices of `free`. Of one that nobody told the devices of, on all of them."""
        everywhere = range(len(self.ids))
        if len(self.ids) == 1 or not replica.devices:
            return everywhere
        return [place for place in everywhere if self.ids[place] in replica.devices] or everywhere

    def fits(self, model: ModelView) -> bool:
        """Whether it could start here now."""
        dram_bytes = 0 if self.checkpoints[model.checkpoint] else model.checkpoint_bytes
        if dram_bytes + self.server.host_bytes_of(model) > self.dram_free:
            return False
        if model.devices == 1:
            most = self.free[0] if len(self.free) == 1 else max(self.free)
            return self.server.device_bytes_of(model) <= most
        return len(self._large_enough(model)) >= model.devices

    def devices_for(self, model: ModelView) -> tuple[int, ...]:
        """Ids of those it would lie on: the fullest that have room, so that large ones stay whole."""
        if len(self.ids) == 1:
            return self.ids
        places = sorted(self._large_enough(model), key=lambda place: (self.free[place], place))[: model.devices]
        return tuple(self.ids[place] for place in sorted(places))

    def _large_enough(self, model: ModelView) -> list[int]:
        share = share_of(self.server, model)
        return [place for place, free in enumerate(self.free) if free >= share]

    @property
    def is_kept(self) -> bool:
        """Nothing takes more than there is."""
        return min(self.free) >= 0 and self.dram_free >= 0


@dataclass(frozen=True, slots=True)
class Standing:
    """A server with all that runs there, and who of that may make room, from what is of least use on. Not to be
    changed, but copied.
    """

    room: Room
    idle: list[ReplicaView]


def share_of(server: ServerView, model: ModelView) -> int:
    """Bytes on each device that it lies on."""
    return -(-server.device_bytes_of(model) // model.devices)


def is_evictable(replica: ReplicaView) -> bool:
    """It may make room for another model."""
    return replica.is_idle and not replica.pinned


def goes_for(replica: ReplicaView, model: ModelView) -> bool:
    """It may make room for this model: a pinned one for its own newest definition alone."""
    return replica.is_idle and (not replica.pinned or replica.model == model.name)


def goes_freely(replica: ReplicaView, model: ModelView) -> bool:
    """It may make room for this model, which is not less important."""
    return is_evictable(replica) and replica.priority <= model.priority


def cheapest(room: Room, idle: Sequence[ReplicaView], model: ModelView) -> tuple[ReplicaView, ...] | None:
    """Of idle replicas, those that have been of least use first, the ones whose going makes room; None if that is not
    enough.

    None goes that need not, and of two sets the one whose most useful replica is of less use is the cheaper. `room` is
    left as it will be then.
    """
    gone: list[ReplicaView] = []
    left = iter(idle)
    while not room.fits(model):
        victim = next(left, None)
        if victim is None:
            return None
        room.remove(victim)
        gone.append(victim)
    needed = gone[-1:]  # there was no room before
    for victim in reversed(gone[:-1]):
        room.add(victim)
        if not room.fits(model):
            room.remove(victim)
            needed.append(victim)
    return tuple(reversed(needed))


def by_use(idle: Iterable[ReplicaView], model: ModelView | None = None) -> list[ReplicaView]:
    """From what is of least use on: the model's own older replicas last, then by priority and by when it was used."""
    name = None if model is None else model.name
    return sorted(idle, key=lambda one: (one.model == name, one.priority, one.idle_since_s, one.id))


def surplus(server: ServerView, replicas: Iterable[ReplicaView]) -> tuple[ReplicaId, ...]:
    """The least recently used idle replicas whose going brings a server back within its memory, as far as they can."""
    replicas = tuple(replicas)
    room = Room.of(server, replicas)
    gone: list[ReplicaId] = []
    for victim in sorted((one for one in replicas if is_evictable(one)), key=lambda one: (one.idle_since_s, one.id)):
        if room.is_kept:
            break
        room.remove(victim)
        gone.append(victim.id)
    return tuple(gone)
