"""One model's prospects on all servers at once (pure): who could start it, how soon, and who cannot, for which reason.

All servers are weighed in columns. Only the few that come out best are looked at one by one, in the order of what they
cannot be better than, until the rest cannot be better than those found: so the answer is that of looking at all.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from serverless_triton.scheduler.admission import ServerName
from serverless_triton.scheduler.columns import Columns, Flags, Floats, Need, Rows
from serverless_triton.scheduler.decision import KEPT_CANDIDATES, Candidate, Move
from serverless_triton.scheduler.estimator import estimate_start, parking_s
from serverless_triton.scheduler.placement import Room, by_use, cheapest, goes_for
from serverless_triton.scheduler.view import ClusterView, ModelView, ReplicaView, ServerView

BUSY = "busy"
TOO_LARGE = "too large"
# Own older replicas go last, then those of higher priority; then what starts soonest, the fewest evictions, the name.
Key = tuple[bool, bool, float, int, ServerName]


@dataclass(slots=True)
class Survey:
    """`start_s` and flags are by row. `found` are candidates among the servers that have something of the model already
    and were looked at one by one, `crowded` those of them where others' moving might help, `refused` why there is none.
    """

    view: ClusterView
    model: ModelView
    need: Need
    start_s: Floats
    unknown: Flags  # up, and nothing of the model there
    free: Flags  # where there is room
    possible: Flags  # of the unknown ones: there is room once idle replicas have gone
    soonest_s: Floats  # with what that takes
    found: list[tuple[Key, Candidate]] = field(default_factory=list)
    crowded: list[ServerName] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, view: ClusterView, model: ModelView, without: Iterable[ServerName] = (), why: str = "") -> Survey:
        """Servers `without` are rejected for that reason."""
        columns = view.index.columns
        need, start_s, unknown = columns.need_of(model), columns.start_s(model), columns.open.copy()
        free = columns.has_room(need, columns.free)
        soonest_s = np.where(free, start_s, start_s + columns.park_s)
        survey = cls(view, model, need, start_s, unknown, free, unknown, soonest_s)
        for name in without:
            row = columns.row_of.get(name)
            if row is not None and unknown[row]:
                unknown[row] = False
                survey.refused[why] += 1
        survey._look_where_it_is()
        survey.possible = unknown & columns.has_room(need, columns.evicted)
        return survey

    @property
    def rejected(self) -> Counter[str]:
        """How many servers are no candidates, by reason."""
        columns, counted = self.view.index.columns, self.refused.copy()
        unknown, able, possible = map(np.count_nonzero, (self.unknown, self._able(), self.possible))
        _reject(counted, "is draining", np.count_nonzero(columns.live) - np.count_nonzero(columns.open))
        _reject(counted, TOO_LARGE, unknown - able)
        _reject(counted, BUSY, able - possible)
        return counted

    def _able(self) -> Flags:
        columns = self.view.index.columns
        return self.unknown & columns.has_room(self.need, columns.all_of_it)

    def _look_where_it_is(self) -> None:
        """Columns do not know what models and their replicas have in common."""
        view, model = self.view, self.model
        own = {one.server for one in view.of_model(model.name)}
        sharing = view.index.by_checkpoint.get(model.checkpoint, {}) if model.checkpoint else {}
        for name in own.union([one.server for one in sharing.values()]):
            row = view.index.columns.row_of.get(name)
            if row is not None and self.unknown[row]:
                self.unknown[row] = False
                self._look_at(row, name, is_own=name in own)

    def _look_at(self, row: int, name: ServerName, *, is_own: bool) -> None:
        server = self.view.index.servers[name]
        if not Room.of(server).fits(self.model):
            self.refused[TOO_LARGE] += 1
            return
        outcome = consider(server, self.view.on_server(name), self.model)
        if isinstance(outcome, str):
            self.refused[outcome] += 1
            is_contested = outcome == BUSY
        else:
            insort(self.found, outcome)
            is_contested = outcome[0][1] or outcome[1].estimate.room_s > self.view.index.columns.move_floor_s[row]
        if is_contested and not is_own:
            self.crowded.append(name)

    def best(self, count: int = KEPT_CANDIDATES) -> list[tuple[Key, Candidate]]:
        """The best so many without a move, the best one first."""
        found = list(self.found)
        for limit_s, rows in self._rising(count):
            self._find(found, count, rows)
            if len(found) >= count and found[count - 1][0][:3] <= (False, False, limit_s):
                break
        return found[:count]

    def _rising(self, count: int) -> Iterator[tuple[float, Rows]]:
        """Rows up to a limit of what they cannot be better than, then those above it."""
        rows = self.possible.nonzero()[0]
        soonest_s, above_s, size = self.soonest_s[rows], -np.inf, count - 1
        while size < len(rows):
            limit_s = np.partition(soonest_s, size)[size]
            yield limit_s, rows[(soonest_s > above_s) & (soonest_s <= limit_s)]
            above_s, size = limit_s, 8 * (size + 1)
        yield np.inf, rows[soonest_s > above_s]

    def _find(self, found: list[tuple[Key, Candidate]], count: int, rows: Rows) -> None:
        """Of these rows, in the order of what they cannot be better than, those that may be among the best."""
        index, free = self.view.index, self.free[rows]
        evictions, soonest_s = _fewest_evictions(index.columns, self.need, rows, free), self.soonest_s[rows]
        for place in np.lexsort((index.columns.rank[rows], evictions, soonest_s)).tolist():
            name = index.columns.name_of[int(rows[place])]
            at_best = (False, False, float(soonest_s[place]), int(evictions[place]), name)
            if len(found) >= count and found[count - 1][0] <= at_best:
                return
            server = index.servers[name]
            if free[place] and len(server.devices) < 2:
                insort(found, ranked(server, self.model, (), devices=_only(server)))
            else:
                insort(found, self._stranger_on(server))

    def _stranger_on(self, server: ServerView) -> tuple[Key, Candidate]:
        """As `consider`, where there is room and nothing of the model."""
        standing = self.view.index.standings[server.name]
        room = standing.room.copy()
        evict = cheapest(room, standing.idle, self.model)
        assert evict is not None, f"{server.name}: columns and placement differ"
        return ranked(server, self.model, evict, devices=room.devices_for(self.model))


def consider(server: ServerView, replicas: Iterable[ReplicaView], model: ModelView) -> tuple[Key, Candidate] | str:
    """A candidate without moves, or why this server, which is large enough, is none."""
    replicas = tuple(replicas)
    if any(one.model == model.name and one.definition == model.definition for one in replicas):
        return "has a replica"
    # Servers tell models apart by name: one version runs at a time, of another backend's model one definition.
    rivals = tuple(r for r in replicas if r.model == model.name and (model.foreign or r.version in model.others))
    if not all(one.is_idle for one in rivals):
        return "runs another version"
    room = Room.of(server, (one for one in replicas if one not in rivals))
    idle = by_use((one for one in replicas if one not in rivals and goes_for(one, model)), model)
    evict = cheapest(room, idle, model)
    if evict is None:
        return BUSY
    return ranked(server, model, (*rivals, *evict), devices=room.devices_for(model))


def ranked(
    server: ServerView,
    model: ModelView,
    evict: tuple[ReplicaView, ...],
    *,
    devices: tuple[int, ...],
    moves: tuple[Move, ...] = (),
) -> tuple[Key, Candidate]:
    """A candidate and its place among others."""
    room_s = sum(move.migrate_s for move in moves) if moves else parking_s(server, len(evict))  # both at once
    estimate = estimate_start(server, model, room_s=room_s)
    candidate = Candidate(
        server=server.name,
        evict=tuple(one.id for one in evict),
        estimate=estimate,
        parked=server.parked_stub(model),
        moves=moves,
        devices=devices,
    )
    own = any(one.model == model.name for one in evict)
    above = any(one.priority > model.priority for one in evict)
    return (own, above, estimate.total_s, len(evict), server.name), candidate


def _only(server: ServerView) -> tuple[int, ...]:
    return (server.devices[0].id,) if server.devices else (0,)


def _fewest_evictions(columns: Columns, need: Need, rows: Rows, free: Flags) -> Rows:
    """Not more than it will take."""
    if need.devices > 1 or free.all():
        return np.where(free, 0, 1)
    device_bytes = need.device_bytes[rows] if isinstance(need.device_bytes, np.ndarray) else need.device_bytes
    missing = device_bytes - columns.free.most[rows]
    return np.where(free, 0, np.maximum(1, -(-missing // np.maximum(1, columns.largest_idle[rows]))))


def _reject(rejected: Counter[str], reason: str, count: int) -> None:
    if count:
        rejected[reason] += count
