"""Other policies behind the interface of ours, to be compared with it or chosen by configuration (all pure).

`random` is what availability-driven serverless platforms do; `locality` starts where the checkpoint is nearest and
waits where that server is busy; `shepherd` starts there, too, and preempts what runs, which starts again where it can:
who was preempted preempts nobody. `least_loaded` starts where the fewest streams are. All of them use replicas that are
there or on their way, as ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random

from serverless_triton.scheduler.decision import (
    KEPT_CANDIDATES,
    Candidate,
    Decision,
    Policy,
    PolicyName,
    Start,
    StartRequest,
    Use,
)
from serverless_triton.scheduler.estimator import estimate_start
from serverless_triton.scheduler.placement import Room, by_use, cheapest, is_evictable
from serverless_triton.scheduler.policy import best_replica, choose, held_back, without_candidate
from serverless_triton.scheduler.survey import BUSY, TOO_LARGE, Key, consider, ranked
from serverless_triton.scheduler.view import ClusterView, ModelView, ServerView


@dataclass(frozen=True, slots=True)
class Option:
    """A server that is large enough and up: a candidate now, or why it is none."""

    server: ServerView
    outcome: tuple[Key, Candidate] | str


Pick = Callable[[ClusterView, StartRequest, list[Option]], list[Candidate]]


def _policy(pick: Pick) -> Policy:
    """`pick` gives the candidates, the one to start first; none: it waits."""

    def decide(view: ClusterView, request: StartRequest) -> Decision:
        found = best_replica(view, request)
        if found is not None:
            return Decision(view_version=view.version, action=Use(replica=found.id))
        reason = held_back(view, request)
        if reason is not None:
            return without_candidate(view, request, {reason: len(view.index.servers)})
        options, rejected = _options(view, request)
        best = tuple(pick(view, request, options)[:KEPT_CANDIDATES])
        if not best:
            return without_candidate(view, request, rejected)
        return Decision(view_version=view.version, action=Start(candidate=best[0]), candidates=best, rejected=rejected)

    return decide


def _options(view: ClusterView, request: StartRequest) -> tuple[list[Option], dict[str, int]]:
    options: list[Option] = []
    rejected: Counter[str] = Counter()
    for server in view.servers:
        if server.draining:
            rejected["is draining"] += 1
        elif server.name in request.avoid_servers:
            rejected["its start failed there"] += 1
        elif not Room.of(server).fits(request.model):
            rejected[TOO_LARGE] += 1
        else:
            outcome = consider(server, view.on_server(server.name), request.model)
            options.append(Option(server, outcome))
            if isinstance(outcome, str):
                rejected[outcome] += 1
    return options, dict(rejected)


def _candidates(options: list[Option]) -> list[tuple[Key, Candidate]]:
    return sorted(option.outcome for option in options if not isinstance(option.outcome, str))


def _random(view: ClusterView, request: StartRequest, options: list[Option]) -> list[Candidate]:
    found = [candidate for _, candidate in _candidates(options)]
    Random(f"{view.version}/{request.model.name}").shuffle(found)
    return found


def _least_loaded(view: ClusterView, request: StartRequest, options: list[Option]) -> list[Candidate]:
    def load(candidate: Candidate) -> int:
        return sum(one.streams for one in view.on_server(candidate.server))

    return sorted((candidate for _, candidate in _candidates(options)), key=lambda one: (load(one), one.server))


def _nearest(options: list[Option], model: ModelView) -> Option | None:
    """Where it would start soonest if there were room; not where a start of it is under way or it runs already."""
    open_to_it = [one for one in options if one.outcome == BUSY or not isinstance(one.outcome, str)]
    return min(open_to_it, key=lambda one: (estimate_start(one.server, model).total_s, one.server.name), default=None)


def _locality(view: ClusterView, request: StartRequest, options: list[Option]) -> list[Candidate]:
    nearest = _nearest(options, request.model)
    if nearest is None or isinstance(nearest.outcome, str):
        return []
    return [nearest.outcome[1]]


def _shepherd(view: ClusterView, request: StartRequest, options: list[Option]) -> list[Candidate]:
    nearest = _nearest(options, request.model)
    if nearest is None:
        return []
    if not isinstance(nearest.outcome, str):
        return [nearest.outcome[1]]
    if request.avoid:  # it would go on for ever: each that is preempted preempting the next
        return [candidate for _, candidate in _candidates(options)]
    preempting = _preempting(view, nearest.server, request.model)
    return [] if preempting is None else [preempting]


def _preempting(view: ClusterView, server: ServerView, model: ModelView) -> Candidate | None:
    """Idle replicas go first, then those running ones that have the least to do again."""
    replicas = tuple(view.on_server(server.name))
    idle = by_use((one for one in replicas if is_evictable(one)), model)
    running = sorted((one for one in replicas if one.is_movable), key=lambda one: (one.tokens, one.id))
    room = Room.of(server, replicas)
    gone = cheapest(room, [*idle, *running], model)
    if gone is None:
        return None
    _, candidate = ranked(server, model, tuple(one for one in gone if one.is_idle), devices=room.devices_for(model))
    return replace(candidate, preempt=tuple(one.id for one in gone if not one.is_idle))


POLICIES: Mapping[PolicyName, Policy] = {
    "startup_time": choose,
    "random": _policy(_random),
    "locality": _policy(_locality),
    "shepherd": _policy(_shepherd),
    "least_loaded": _policy(_least_loaded),
}
