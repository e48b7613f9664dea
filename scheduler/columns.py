"""Every server's figures as columns of numbers, one row a server, so that all of them are weighed at once.

What a column says is what `placement.py` and `estimator.py` say of one server; a test holds them to that. Rows are
kept by `view_index.py`, from what is known of servers and replicas at the time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_triton.scheduler.admission import ServerName, StartState
from serverless_triton.scheduler.definitions import definition_of
from serverless_triton.scheduler.estimator import LINKS, path_bandwidth, queue_s_of
from serverless_triton.scheduler.placement import Room, Standing, by_use, is_evictable
from serverless_triton.scheduler.view import ModelView, ReplicaView, ServerView

Floats = NDArray[np.float64]
Bytes = NDArray[np.int64]
Flags = NDArray[np.bool_]
Rows = NDArray[np.intp]
AnyRows = set[int] | frozenset[int]

NO_ROWS: frozenset[int] = frozenset()
NO_CHECKPOINTS: frozenset[str] = frozenset()

NO_PRIORITY = -(1 << 62)  # below any

STATES: tuple[StartState, ...] = ("cold", "parked")
TIERS = tuple(LINKS)
ONE_A_ROW = (
    "live",
    "open",
    "holds_weights",
    "largest_idle",
    "idle_priority",
    "move_floor_s",
    "queue_s",
    "remote_queue_s",
    "park_s",
)


@dataclass(slots=True)
class Level:
    """What is free on every server by device, and of DRAM, once some of its replicas have gone. `most` is on the
    emptiest device. A device that is not there has less than nothing.
    """

    devices: Bytes = field(default_factory=lambda: np.full((1, 1), -1, np.int64))
    most: Bytes = field(default_factory=lambda: np.full(1, -1, np.int64))
    dram: Bytes = field(default_factory=lambda: np.full(1, -1, np.int64))

    def grow(self, rows: int, devices: int) -> None:
        before = self.devices
        self.devices = np.full((rows, devices), -1, np.int64)
        self.devices[: before.shape[0], : before.shape[1]] = before
        self.most, self.dram = _grown(self.most, rows), _grown(self.dram, rows)

    def set(self, row: int, room: Room) -> None:
        self.devices[row] = -1
        self.devices[row, : len(room.free)] = room.free
        self.most[row], self.dram[row] = max(room.free), room.dram_free

    def each_of(self, devices: int) -> Bytes:
        """What so many devices have free each."""
        if devices == 1:
            return self.most
        count = self.devices.shape[1]
        if devices > count:
            return np.full(len(self.most), -1, np.int64)
        return np.partition(self.devices, count - devices, axis=1)[:, count - devices]


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on each of a model's devices, and of DRAM; by row where servers differ in what counts there."""

    device_bytes: Bytes | int
    dram_bytes: Bytes | int
    devices: int


@dataclass(slots=True)
class Columns:
    """Rows by server; a row of none is not `live`. Rooms: `all_of_it`, `free` now, without what may be evicted
    (`evicted`), and without what may be moved beside (`moved`).
    """

    row_of: dict[ServerName, int] = field(default_factory=dict)
    name_of: dict[int, ServerName] = field(default_factory=dict)
    live: Flags = field(default_factory=lambda: np.zeros(1, np.bool_))
    open: Flags = field(default_factory=lambda: np.zeros(1, np.bool_))  # live, and not draining
    holds_weights: Flags = field(default_factory=lambda: np.zeros(1, np.bool_))
    all_of_it: Level = field(default_factory=Level)
    free: Level = field(default_factory=Level)
    evicted: Level = field(default_factory=Level)
    moved: Level = field(default_factory=Level)
    largest_idle: Bytes = field(default_factory=lambda: np.zeros(1, np.int64))
    idle_priority: Bytes = field(default_factory=lambda: np.zeros(1, np.int64))  # the highest of those that may go
    move_floor_s: Floats = field(default_factory=lambda: np.zeros(1))
    queue_s: Floats = field(default_factory=lambda: np.zeros(1))
    remote_queue_s: Floats = field(default_factory=lambda: np.zeros(1))
    park_s: Floats = field(default_factory=lambda: np.zeros(1))
    bandwidth: dict[str, Floats] = field(default_factory=lambda: {tier: np.ones(1) for tier in TIERS})
    fixed_s: dict[tuple[str, str], Floats] = field(
        default_factory=lambda: {(state, tier): np.zeros(1) for state in STATES for tier in TIERS}
    )
    in_dram: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # rows by checkpoint
    on_ssd: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # of copies alone
    parked: defaultdict[tuple[str, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    _rank: NDArray[np.int64] | None = None

    # Rows

    def put(self, server: ServerView, before: ServerView | None) -> None:
        """What is told of a server itself; `before` is what was told last."""
        row = self.row_of.get(server.name)
        if row is None:
            row = self._new_row(server.name)
        self.live[row], self.open[row] = True, not server.draining
        self.holds_weights[row] = server.device_holds_weights
        self.queue_s[row], self.remote_queue_s[row] = queue_s_of(server, "ssd"), queue_s_of(server, "remote")
        self.park_s[row] = server.park_s
        for tier, column in self.bandwidth.items():
            column[row] = path_bandwidth(server, tier)
        for (state, tier), column in self.fixed_s.items():
            column[row] = server.fixed_start_s[state][tier]  # type: ignore[index]
        self._note_tiers(row, server, before)

    def drop(self, server: ServerView) -> None:
        row = self.row_of.pop(server.name)
        del self.name_of[row]
        self.live[row] = self.open[row] = False
        self._rank = None
        self._note_tiers(row, None, server)

    def _new_row(self, name: ServerName) -> int:
        row = len(self.row_of)
        if row in self.name_of:  # another has left
            row = next(number for number in range(len(self.live) + 1) if number not in self.name_of)
        if row >= len(self.live):
            self._grow(2 * len(self.live), self.free.devices.shape[1])
        self.row_of[name], self.name_of[row], self._rank = row, name, None
        return row

    def _grow(self, rows: int, devices: int) -> None:
        for level in (self.all_of_it, self.free, self.evicted, self.moved):
            level.grow(rows, devices)
        for name in ONE_A_ROW:
            setattr(self, name, _grown(getattr(self, name), rows))
        self.bandwidth = {tier: _grown(column, rows) for tier, column in self.bandwidth.items()}
        self.fixed_s = {key: _grown(column, rows) for key, column in self.fixed_s.items()}

    def _note_tiers(self, row: int, server: ServerView | None, before: ServerView | None) -> None:
        for name in ("in_dram", "on_ssd"):
            now, then = (getattr(one, name) if one else NO_CHECKPOINTS for one in (server, before))
            if now is not then:
                _note(getattr(self, name), row, now, then)
        stubs, earlier = (_stubs(one) if one else frozenset() for one in (server, before))
        _note(self.parked, row, stubs, earlier)

    def weigh(self, server: ServerView, replicas: Iterable[ReplicaView]) -> Standing:
        """What the replicas there leave of the server's memory."""
        row, room = self.row_of[server.name], Room.of(server)
        if len(room.free) > self.free.devices.shape[1]:
            self._grow(len(self.live), len(room.free))
        self.all_of_it.set(row, room)
        idle, busy = [], []
        for replica in replicas:
            if is_evictable(replica):
                idle.append(replica)
            elif replica.is_movable:
                busy.append(replica)
            else:
                room.add(replica)
        for level, more in ((self.moved, ()), (self.evicted, busy), (self.free, idle)):
            for replica in more:
                room.add(replica)
            level.set(row, room)
        self.largest_idle[row] = max((server.device_bytes_of(one) for one in idle), default=0)
        self.idle_priority[row] = max((one.priority for one in idle), default=NO_PRIORITY)
        return Standing(room=room, idle=by_use(idle))

    # What a model would meet

    def start_s(self, model: ModelView) -> Floats:
        """What `estimate_start` says for every row, room not counted."""
        if model.foreign:
            return np.full(len(self.live), model.load_s)
        parked, tiers = self._parked_rows(model), self._tiers(model)
        start_s = self._start_s(model, "cold", tiers[0][0], slice(None))
        for tier, rows in tiers:  # from the farthest: a nearer one overrules it
            groups: tuple[tuple[StartState, AnyRows | None], ...] = (
                ("cold", rows - parked if rows and parked else rows),
                ("parked", parked & rows if rows is not None else parked),
            )
            for state, some in groups:
                if some:
                    chosen = np.fromiter(some, np.intp, len(some))
                    start_s[chosen] = self._start_s(model, state, tier, chosen)
        return start_s

    def _tiers(self, model: ModelView) -> list[tuple[str, AnyRows | None]]:
        """Where its bytes would come from, and on which rows, from the farthest on; None: all that have no nearer."""
        in_dram: AnyRows = self.in_dram.get(model.checkpoint, NO_ROWS)
        if not model.is_remote:
            return [("ssd", None), ("dram", in_dram)]
        return [("remote", None), ("ssd", self.on_ssd.get(model.checkpoint, NO_ROWS)), ("dram", in_dram)]

    def _start_s(self, model: ModelView, state: StartState, tier: str, rows: Any) -> Floats:
        fixed_s = self.fixed_s[state, tier][rows]
        transfer_s = model.checkpoint_bytes / self.bandwidth[tier][rows]
        offset_s = model.fixed_offset_s.get(state, 0.0)
        if tier == "ssd":
            transfer_s += self.queue_s[rows]
        elif tier == "remote":
            transfer_s += self.remote_queue_s[rows]
        return transfer_s + (np.maximum(0.0, fixed_s + offset_s) if offset_s else fixed_s)  # type: ignore[no-any-return]

    def _parked_rows(self, model: ModelView) -> AnyRows:
        found: AnyRows = self.parked.get((model.name, model.definition), NO_ROWS)
        unmarked: AnyRows = self.parked.get((model.name, ""), NO_ROWS) if model.definition else NO_ROWS
        return found | unmarked if unmarked else found

    def has_room(self, need: Need, level: Level) -> Flags:
        """Where a model would fit, as if no replica there shared its checkpoint."""
        return (level.each_of(need.devices) >= need.device_bytes) & (level.dram >= need.dram_bytes)

    def need_of(self, model: ModelView) -> Need:
        on_gpu = -(-(model.device_bytes + model.checkpoint_bytes) // model.devices)
        on_host = -(-(model.device_bytes + model.host_bytes) // model.devices)
        device_bytes = on_gpu if on_gpu == on_host else np.where(self.holds_weights, on_gpu, on_host)
        on_gpu_host = np.where(self.holds_weights, model.host_bytes, 0) if model.host_bytes else 0
        return Need(device_bytes, model.checkpoint_bytes + on_gpu_host, model.devices)

    @property
    def rank(self) -> NDArray[np.int64]:
        """Places in the order of servers' names."""
        if self._rank is None:
            self._rank = np.full(len(self.live), len(self.live), np.int64)
            for place, name in enumerate(sorted(self.row_of)):
                self._rank[self.row_of[name]] = place
        return self._rank


def _grown(column: NDArray[Any], rows: int) -> NDArray[Any]:
    more = np.full(rows - len(column), -1 if column.dtype == np.int64 else 1).astype(column.dtype)
    if column.dtype == np.bool_:
        more[:] = False
    return np.concatenate([column, more])


def _stubs(server: ServerView) -> frozenset[tuple[str, str]]:
    return frozenset((model, definition_of(stub)) for model, stub in server.parked.items())


def _note(rows_of: defaultdict[Any, set[int]], row: int, now: frozenset[Any], then: frozenset[Any]) -> None:
    for key in then - now:
        rows_of[key].discard(row)
        if not rows_of[key]:
            del rows_of[key]
    for key in now - then:
        rows_of[key].add(row)
