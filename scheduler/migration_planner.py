"""Which running replicas to move out of a model's way, and where to (pure; ServerlessLLM, OSDI '24, section 6.2).

To move a replica takes a·(t_in + t_out) + b for the tokens of its streams, and the start at its destination, which is
where its model starts soonest without moving anybody else. Which replicas of a server move is found by dynamic
programming over them: of plans that free as much, only the cheapest goes on. Moves of a plan go one after another, each
to a server of its own: where two would go to the same, the later one goes where it starts next soonest.

Plans are made for the servers that promise most by `move_floors.py`, at most `MOST_SERVERS` of them, so that a decision
stays a matter of a millisecond in the largest cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np

from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.decision import Candidate, Move
from serverless_triton.scheduler.placement import Room, by_use, cheapest, goes_freely, share_of
from serverless_triton.scheduler.survey import Key, Survey, ranked
from serverless_triton.scheduler.view import ClusterView, ModelView, Phase, ReplicaView, ServerView

Freed = tuple[int, ...]
MOST_SERVERS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """Some replicas of one server gone, and how long that takes."""

    moves: tuple[Move, ...] = ()
    gone: tuple[ReplicaView, ...] = ()

    @property
    def cost_s(self) -> float:
        return sum(move.migrate_s for move in self.moves)

    @property
    def has_conflict(self) -> bool:
        return len({move.to for move in self.moves}) < len(self.moves)


@dataclass(frozen=True, slots=True)
class Partial:
    """Replicas that might move, and what that takes where each has its destination to itself."""

    gone: tuple[ReplicaView, ...]
    cost_s: float
    freed: Freed
    room: Room


class Mover(NamedTuple):
    """A running replica that may move, in no less than `floor_s`."""

    floor_s: float
    id: ReplicaId
    replica: ReplicaView


@dataclass(slots=True)
class MigrationPlanner:
    """Plans for one decision."""

    view: ClusterView
    _ways: dict[tuple[ReplicaId, int], list[Move]] = field(default_factory=dict)

    def best(self, survey: Survey, limit_s: float) -> tuple[Key, Candidate] | None:
        """The candidate with moves that starts soonest, if it does so within less than `limit_s`."""
        found: tuple[Key, Candidate] | None = None
        for name, floor_s in islice(self._servers(survey, limit_s), MOST_SERVERS):
            if floor_s >= limit_s:
                break
            server = self.view.index.servers[name]
            start_s = float(survey.start_s[self.view.index.columns.row_of[name]])
            plan = self.cheapest(server, survey.model, limit_s - start_s)
            if plan is not None:
                candidate = _candidate(server, self.view.on_server(name), survey.model, plan)
                if candidate[1].estimate.total_s < limit_s:
                    found, limit_s = candidate, candidate[1].estimate.total_s
        return found

    def _servers(self, survey: Survey, limit_s: float) -> Iterator[tuple[ServerName, float]]:
        """Where moves would make room, in the order of what they cannot be better than."""
        columns = self.view.index.columns
        floors_s = survey.start_s + columns.move_floor_s
        contested = ~survey.possible | (columns.idle_priority > survey.model.priority)
        contested |= survey.soonest_s > floors_s  # a move may take less than to park whoever is idle
        wanted = survey.unknown & contested & (floors_s < limit_s)
        wanted &= columns.has_room(survey.need, columns.moved)
        for name in survey.crowded:
            wanted[columns.row_of[name]] = True
        rows = np.flatnonzero(wanted)
        for row in rows[np.lexsort((columns.rank[rows], floors_s[rows]))].tolist():
            yield columns.name_of[row], float(floors_s[row])

    def cheapest(self, server: ServerView, model: ModelView, limit_s: float) -> Plan | None:
        """The plan that makes room there soonest, idle replicas of no higher priority gone as well; None: none does
        within less.
        """
        standing = self.view.index.standings[server.name]
        room = standing.room.copy()
        for one in standing.idle:
            if goes_freely(one, model):
                room.remove(one)
        movers = self._movers(server.name, model, limit_s)
        best: Plan | None = None
        for group in _groups(room, movers, model):
            best = self._program(room, group, model, limit_s) or best
            limit_s = limit_s if best is None else best.cost_s
        return best

    def _movers(self, server: ServerName, model: ModelView, limit_s: float) -> list[Mover]:
        """From the one on that may move soonest."""
        found = []
        for one in self.view.on_server(server):
            if one.is_movable and one.model != model.name and one.priority <= model.priority:
                floor_s = self.view.index.move_floor_s(one) + _tokens_s(one)
                if floor_s < limit_s:
                    found.append(Mover(floor_s, one.id, one))
        return sorted(found)

    def _program(self, room: Room, movers: Sequence[Mover], model: ModelView, limit_s: float) -> Plan | None:
        best: Plan | None = None
        too_small: list[Mover] = []
        for mover in movers:
            if not _without(room, mover.replica).fits(model):
                too_small.append(mover)
            elif mover.floor_s < limit_s:
                moves = self._destinations(mover.replica, 1)
                if moves and moves[0].migrate_s < limit_s:
                    best, limit_s = Plan((moves[0],), (mover.replica,)), moves[0].migrate_s
        return self._together(room, too_small, model, limit_s) or best

    def _together(self, room: Room, movers: Sequence[Mover], model: ModelView, limit_s: float) -> Plan | None:
        """Of those that make room only with others; whoever does so alone costs no more than with any."""
        best: Partial | None = None
        least_s, bound_s = (movers[0].floor_s if movers else 0.0), limit_s
        partials = [Partial((), 0.0, (), room)]
        for place, mover in enumerate(movers):
            if mover.floor_s + (least_s if place else _floor_s(movers[1:2])) >= bound_s:
                continue
            moves = self._destinations(mover.replica, 1)
            for partial in partials.copy() if moves else ():
                cost_s = partial.cost_s + moves[0].migrate_s
                if cost_s >= bound_s:
                    continue
                gone, left = (*partial.gone, mover.replica), _without(partial.room, mover.replica)
                longer = Partial(gone, cost_s, _freed(left, model, gone), left)
                if left.fits(model):
                    best, bound_s = longer, cost_s
                else:
                    _keep(partials, longer)
        plan = None if best is None else self._assigned(best)
        return plan if plan is not None and plan.cost_s < limit_s else None

    def _assigned(self, partial: Partial) -> Plan | None:
        """Each to a server of its own; None where there are too few."""
        plan = Plan(tuple(self._destinations(one, 1)[0] for one in partial.gone), partial.gone)
        if not plan.has_conflict:
            return plan
        moves: list[Move] = []
        for one in partial.gone:
            taken = {move.to for move in moves}
            left = [move for move in self._destinations(one, len(partial.gone)) if move.to not in taken]
            if not left:
                return None
            moves.append(left[0])
        return Plan(tuple(moves), partial.gone)

    def _destinations(self, replica: ReplicaView, count: int) -> list[Move]:
        """Where its streams could go on, soonest first."""
        key = (replica.id, count)
        if key not in self._ways:
            self._ways[key] = sorted(self._find(replica, count), key=lambda move: (move.migrate_s, move.to))
        return self._ways[key]

    def _find(self, replica: ReplicaView, count: int) -> Iterator[Move]:
        model, tokens_s = replica.model_view, _tokens_s(replica)
        assert model is not None
        base_s = tokens_s + model.migration_fixed_s
        for twin in self.view.of_model(replica.model):
            if _takes_in(twin, replica) and self.view.server(twin.server) is not None:
                yield Move(replica=replica.id, to=twin.server, migrate_s=base_s, into=twin.id)
        for (own, above, *_), there in Survey.of(self.view, model, (replica.server,)).best(count):
            if not own and not above:
                yield Move(
                    replica=replica.id,
                    to=there.server,
                    migrate_s=base_s + there.estimate.total_s,
                    evict=there.evict,
                    parked=there.parked,
                    devices=there.devices,
                )


def _tokens_s(replica: ReplicaView) -> float:
    return replica.model_view.migration_s_per_token * replica.tokens if replica.model_view is not None else 0.0


def _takes_in(twin: ReplicaView, replica: ReplicaView) -> bool:
    """All of its streams, where another replica of just this model is ready."""
    is_twin = twin.server != replica.server and (twin.definition, twin.version) == (replica.definition, replica.version)
    return is_twin and twin.phase is Phase.READY and twin.streams + replica.streams <= twin.max_streams


def _floor_s(movers: Sequence[Mover]) -> float:
    return movers[0].floor_s if movers else float("inf")


def _without(room: Room, replica: ReplicaView) -> Room:
    left = room.copy()
    left.remove(replica)
    return left


def _groups(room: Room, movers: Sequence[Mover], model: ModelView) -> Iterator[Sequence[Mover]]:
    """Those whose going helps together: those of one device, unless more than a device is short."""
    dram_bytes = room.server.host_bytes_of(model) + (
        0 if room.checkpoints[model.checkpoint] else model.checkpoint_bytes
    )
    if model.devices > 1 or dram_bytes > room.dram_free or len(room.ids) == 1:
        yield movers
        return
    for place in range(len(room.ids)):
        group = [mover for mover in movers if place in room.places(mover.replica)]
        if group:
            yield group


def _freed(room: Room, model: ModelView, gone: Sequence[ReplicaView]) -> Freed:
    """All that decides who else would have to go, as far as it is of use; checkpoints that stay for others' sake among
    it.
    """
    share, dram_bytes = share_of(room.server, model), model.checkpoint_bytes + room.server.host_bytes_of(model)
    shared = Counter(one.checkpoint for one in gone)
    kept = (shared[name] for name in sorted(shared) if room.checkpoints[name])
    return (*(min(free, share) for free in room.free), min(room.dram_free, dram_bytes), *kept)


def _keep(partials: list[Partial], new: Partial) -> None:
    """Unless another frees as much for no more; and those no longer of which that is now true."""
    if not any(_is_as_good(other, new) for other in partials):
        partials[:] = [other for other in partials if not _is_as_good(new, other)]
        partials.append(new)


def _is_as_good(one: Partial, than: Partial) -> bool:
    if one.cost_s > than.cost_s or len(one.freed) != len(than.freed):
        return False
    return all(ours >= theirs for ours, theirs in zip(one.freed, than.freed, strict=True))


def _candidate(
    server: ServerView, replicas: Iterable[ReplicaView], model: ModelView, plan: Plan
) -> tuple[Key, Candidate]:
    gone = {one.id for one in plan.gone}
    staying = [one for one in replicas if one.id not in gone]
    room = Room.of(server, staying)
    evict = cheapest(room, by_use((one for one in staying if goes_freely(one, model)), model), model)
    assert evict is not None, "the plan makes room beside idle replicas"
    return ranked(server, model, evict, devices=room.devices_for(model), moves=plan.moves)
