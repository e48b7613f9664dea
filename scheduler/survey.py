"""One model's prospects on all servers at once (pure): who could start it, how soon, and who cannot, for which reason.

All servers are weighed in columns. Only the few that come out best are looked at one by one, in the order of what they
cannot be better than, until the rest cannot be better than those found: so the answer is that of looking at all.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from serverless_triton.scheduler.admission import ServerName
from serverless_triton.scheduler.columns import Columns, Flags, Floats, Rows
from serverless_triton.scheduler.decision import KEPT_CANDIDATES, Candidate, Move
from serverless_triton.scheduler.estimator import estimate_start
from serverless_triton.scheduler.placement import Room, by_use, cheapest, is_evictable
from serverless_triton.scheduler.view import ClusterView, ModelView, ReplicaView, ServerView

BUSY = "busy"
TOO_LARGE = "too large"
# Own older replicas go last, then those of higher priority; then what starts soonest, the fewest evictions, the name.
Key = tuple[bool, bool, float, int, ServerName]


@dataclass(slots=True)
class Survey:
    """`start_s` and flags are by row. `found` are candidates among the servers that have something of the model already
    and were looked at one by one, `crowded` those of them that are busy.
    """

    view: ClusterView
    model: ModelView
    start_s: Floats
    able: Flags  # large enough, and nothing of the model there
    free: Flags  # of these: there is room
    possible: Flags  # of these: there is room once idle replicas have gone
    found: list[tuple[Key, Candidate]] = field(default_factory=list)
    crowded: list[ServerName] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, view: ClusterView, model: ModelView, without: Iterable[ServerName] = (), why: str = "") -> Survey:
        """Servers `without` are rejected for that reason."""
        columns = view.index.columns
        rejected: Counter[str] = Counter()
        able = columns.live & ~columns.draining
        _reject(rejected, "is draining", int(columns.live.sum() - able.sum()))
        for name in without:
            row = columns.row_of.get(name)
            if row is not None and able[row]:
                able[row] = False
                rejected[why] += 1
        up = int(able.sum())
        able &= columns.has_room(model, columns.all_of_it)
        _reject(rejected, TOO_LARGE, up - int(able.sum()))
        survey = cls(view, model, columns.start_s(model), able, able, able, rejected=rejected)
        survey._look_where_it_is()
        survey.free = able & columns.has_room(model, columns.free)
        survey.possible = able & columns.has_room(model, columns.evicted)
        _reject(rejected, BUSY, int(able.sum() - survey.possible.sum()))
        return survey

    def _look_where_it_is(self) -> None:
        """Columns do not know what models and their replicas have in common."""
        view, model = self.view, self.model
        own = {one.server for one in view.of_model(model.name) if one.definition == model.definition}
        related = {one.server for one in view.of_model(model.name)}
        if model.checkpoint:
            related |= {one.server for one in view.index.by_checkpoint.get(model.checkpoint, {}).values()}
        for name in related:
            row = view.index.columns.row_of.get(name)
            if row is not None and self.able[row]:
                self.able[row] = False
                self._look_at(name, "has a replica" if name in own else None)

    def _look_at(self, name: ServerName, reason: str | None) -> None:
        outcome = reason or consider(self.view.index.servers[name], self.view.on_server(name), self.model)
        if isinstance(outcome, str):
            self.rejected[outcome] += 1
            if outcome == BUSY:
                self.crowded.append(name)
        else:
            insort(self.found, outcome)

    def best(self, count: int = KEPT_CANDIDATES) -> list[tuple[Key, Candidate]]:
        """The best so many without a move, the best one first."""
        found, columns = list(self.found), self.view.index.columns
        for row, evictions in self._rising(count):
            name = columns.name_of[row]
            if len(found) >= count and found[count - 1][0] <= (False, False, float(self.start_s[row]), evictions, name):
                break
            server = self.view.index.servers[name]
            if self.free[row] and len(server.devices) < 2:
                insort(found, ranked(server, self.model, (), devices=_only(server)))
            else:
                outcome = consider(server, self.view.on_server(name), self.model)
                assert not isinstance(outcome, str), f"{name}: columns and placement differ"
                insort(found, outcome)
        return found[:count]

    def _rising(self, count: int) -> Iterator[tuple[int, int]]:
        """Rows and how many evictions they take at least, in the order of what they cannot be better than."""
        rows = np.flatnonzero(self.possible)
        start_s, above_s, size = self.start_s[rows], -np.inf, 2 * count
        while True:
            limit_s = np.partition(start_s, size)[size] if size < len(rows) else np.inf
            chosen = rows[(start_s > above_s) & (start_s <= limit_s)]
            yield from self._in_order(chosen)
            if size >= len(rows):
                return
            above_s, size = limit_s, 8 * size

    def _in_order(self, rows: Rows) -> Iterator[tuple[int, int]]:
        evictions = _fewest_evictions(self.view.index.columns, self.model, rows, self.free[rows])
        order = np.lexsort((self.view.index.columns.rank[rows], evictions, self.start_s[rows]))
        yield from zip(rows[order].tolist(), evictions[order].tolist(), strict=True)


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
    idle = by_use((one for one in replicas if one not in rivals and is_evictable(one)), model)
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
    estimate = estimate_start(server, model)
    if moves:
        estimate = replace(estimate, room_s=sum(move.migrate_s for move in moves))
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


def _fewest_evictions(columns: Columns, model: ModelView, rows: Rows, free: Flags) -> Rows:
    """Not more than it will take."""
    if model.devices > 1 or free.all():
        return np.where(free, 0, 1)
    need, _ = columns.needs(model)
    missing = (need[rows] if isinstance(need, np.ndarray) else need) - columns.free.most[rows]
    return np.where(free, 0, np.maximum(1, -(-missing // np.maximum(1, columns.largest_idle[rows]))))


def _reject(rejected: Counter[str], reason: str, count: int) -> None:
    if count:
        rejected[reason] += count
