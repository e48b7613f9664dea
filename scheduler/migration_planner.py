"""Which running replicas to move out of a model's way, and where to (pure; ServerlessLLM, OSDI '24, section 6.2).

To move a replica takes a·(t_in + t_out) + b for the tokens of its streams, and the start at its destination, which is
where its model starts soonest without moving anybody else. Which replicas of a server move is found by dynamic
programming over them: of plans that free as much, only the cheapest go on. Moves of a plan go one after another, each
to a server of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.decision import Candidate, Move
from serverless_triton.scheduler.placement import Room, by_use, cheapest, is_evictable, share_of
from serverless_triton.scheduler.survey import Key, Survey, ranked
from serverless_triton.scheduler.view import ClusterView, ModelView, Phase, ReplicaView, ServerView

Freed = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Some replicas of one server gone, and how long that takes."""

    moves: tuple[Move, ...] = ()
    cost_s: float = 0.0
    gone: tuple[ReplicaView, ...] = ()

    def goes_to(self, server: ServerName) -> bool:
        return any(move.to == server for move in self.moves)


@dataclass(slots=True)
class MigrationPlanner:
    """Plans for one decision."""

    view: ClusterView
    _ways: dict[tuple[ReplicaId, int], list[Move]] = field(default_factory=dict)

    def best(self, survey: Survey, limit_s: float) -> tuple[Key, Candidate] | None:
        """The candidate with moves that starts soonest, if it does so within less than `limit_s`."""
        found: tuple[Key, Candidate] | None = None
        for name, floor_s in self._servers(survey, limit_s):
            if floor_s >= limit_s:
                break
            server, replicas = self.view.index.servers[name], self.view.on_server(name)
            start_s = float(survey.start_s[self.view.index.columns.row_of[name]])
            plan = self.cheapest(server, replicas, survey.model, limit_s - start_s)
            if plan is not None:
                candidate = _candidate(server, replicas, survey.model, plan)
                if candidate[1].estimate.total_s < limit_s:
                    found, limit_s = candidate, candidate[1].estimate.total_s
        return found

    def _servers(self, survey: Survey, limit_s: float) -> Iterator[tuple[ServerName, float]]:
        """Where moves would make room, in the order of what they cannot be better than."""
        columns = self.view.index.columns
        floors_s = survey.start_s + columns.move_floor_s
        wanted = survey.able & ~survey.possible & (floors_s < limit_s)
        wanted &= columns.has_room(survey.model, columns.moved)
        for name in survey.crowded:
            wanted[columns.row_of[name]] = True
        rows = np.flatnonzero(wanted)
        for row in rows[np.lexsort((columns.rank[rows], floors_s[rows]))].tolist():
            yield columns.name_of[row], float(floors_s[row])

    def cheapest(
        self, server: ServerView, replicas: Iterable[ReplicaView], model: ModelView, limit_s: float
    ) -> Plan | None:
        """The plan that makes room there soonest, idle replicas gone as well; None: none does within less."""
        replicas = sorted(replicas, key=lambda one: one.id)
        staying = [one for one in replicas if not is_evictable(one)]
        movable = [one for one in staying if self._may_move(one, model, limit_s)]
        best: Plan | None = None
        for group in _groups(server, staying, movable, model):
            found = self._program(server, staying, group, model, limit_s if best is None else best.cost_s)
            best = found or best
        return best

    def _may_move(self, replica: ReplicaView, model: ModelView, limit_s: float) -> bool:
        if not replica.is_movable or replica.model == model.name or replica.priority > model.priority:
            return False
        return self.view.index.move_floor_s(replica) + _tokens_s(replica) < limit_s

    def _program(
        self,
        server: ServerView,
        staying: Sequence[ReplicaView],
        movable: Sequence[ReplicaView],
        model: ModelView,
        limit_s: float,
    ) -> Plan | None:
        best: Plan | None = None
        plans: list[tuple[Freed, Plan]] = [((), Plan())]
        for replica in movable:
            for _, plan in plans:
                for move in self._destinations(replica, len(movable)):
                    longer = Plan((*plan.moves, move), plan.cost_s + move.migrate_s, (*plan.gone, replica))
                    if longer.cost_s >= limit_s:
                        break
                    if plan.goes_to(move.to):
                        continue
                    room = Room.of(server, (one for one in staying if one not in longer.gone))
                    if room.fits(model):
                        best, limit_s = longer, longer.cost_s
                        break
                    _keep(plans, _freed(room, model, longer.gone), longer)
        return best

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


def _groups(
    server: ServerView, staying: Sequence[ReplicaView], movable: Sequence[ReplicaView], model: ModelView
) -> Iterator[Sequence[ReplicaView]]:
    """Those whose going helps together: those of one device, unless more than a device is short."""
    room = Room.of(server, staying)
    dram_bytes = server.host_bytes_of(model) + (0 if room.checkpoints[model.checkpoint] else model.checkpoint_bytes)
    if model.devices > 1 or dram_bytes > room.dram_free or len(room.ids) == 1:
        yield movable
        return
    for place in range(len(room.ids)):
        group = [one for one in movable if place in room.places(one)]
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


def _keep(plans: list[tuple[Freed, Plan]], freed: Freed, plan: Plan) -> None:
    """Unless another frees as much for no more; and those no longer of which that is now true."""
    if not any(_is_as_good(other, other_plan, freed, plan) for other, other_plan in plans):
        plans[:] = [(other, one) for other, one in plans if not _is_as_good(freed, plan, other, one)]
        plans.append((freed, plan))


def _is_as_good(freed: Freed, plan: Plan, than_freed: Freed, than: Plan) -> bool:
    """And goes to no server that the other does not go to."""
    if plan.cost_s > than.cost_s or len(freed) != len(than_freed):
        return False
    frees_as_much = all(ours >= theirs for ours, theirs in zip(freed, than_freed, strict=True))
    return frees_as_much and all(than.goes_to(move.to) for move in plan.moves)


def _candidate(
    server: ServerView, replicas: Iterable[ReplicaView], model: ModelView, plan: Plan
) -> tuple[Key, Candidate]:
    staying = [one for one in replicas if one not in plan.gone]
    room = Room.of(server, staying)
    evict = cheapest(room, by_use((one for one in staying if is_evictable(one)), model), model)
    assert evict is not None, "the plan makes room beside idle replicas"
    return ranked(server, model, evict, devices=room.devices_for(model), moves=plan.moves)
