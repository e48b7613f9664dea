"""Where does it start soonest? A pure function of the view and the request (decision 12).

1. A ready replica with room takes the stream: the one with the fewest streams.
2. A replica that is being started already is joined: one load serves all who ask.
3. Otherwise it starts where the estimate is lowest, idle replicas making room there, the least recently used first and
   none that need not. A parked stub of the model lowers it, because Triton has nothing to load then.
4. Where nothing can be freed it waits; where nothing could ever be freed it is refused.
5. Where the model's definition has changed, replicas of the newest take streams first, and those of an older one until
   there are such. They make room for a start of the newest last, and where one failed nothing but they serve.
6. A server runs one version of a model at a time: an idle replica of another goes, for a busy one it waits.
7. Running replicas move where that starts sooner than anything that leaves them alone (`migration_planner.py`).
8. Where a place on a full replica is expected sooner than any start, it waits for that; so it does for room on a
   server that is busy, where it would then start sooner than anywhere now (`patience.py`); but for no longer, since it
   came, than the start would take.
9. Replicas of a pinned model do not move, and go for its own newest definition alone. Those of a higher priority go
   only where nobody else's going helps, and do not move. A model that has its most replicas gets no more.

Ties are broken by id. A replica that a stream holds is never evicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from serverless_triton.scheduler import placement
from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.decision import (
    KEPT_CANDIDATES,
    Candidate,
    Decision,
    Move,
    Policy,
    Refuse,
    Start,
    StartRequest,
    Use,
    Wait,
)
from serverless_triton.scheduler.estimator import StartEstimate
from serverless_triton.scheduler.migration_planner import MigrationPlanner
from serverless_triton.scheduler.patience import room_at_s
from serverless_triton.scheduler.survey import TOO_LARGE, Key, Survey
from serverless_triton.scheduler.view import ClusterView, ModelView, Phase, ReplicaView

__all__ = [
    "Candidate",
    "Decision",
    "Move",
    "Policy",
    "Refuse",
    "Start",
    "StartRequest",
    "Use",
    "Wait",
    "choose",
    "in_time",
    "surplus",
]


def choose(view: ClusterView, request: StartRequest) -> Decision:
    """The decision for one request. Same view, same decision."""
    assert view.is_current, "the cluster has changed since this view of it was lent"
    replica = best_replica(view, request)
    if replica is not None:
        return Decision(view_version=view.version, action=Use(replica=replica.id))
    reason = held_back(view, request)
    if reason is not None:
        return without_candidate(view, request, {reason: len(view.index.servers)})
    survey = Survey.of(view, request.model, sorted(request.avoid_servers), "its start failed there")
    best = _with_moves(view, survey, survey.best())
    if not best:
        return without_candidate(view, request, survey.rejected)
    until_s = free_at_s(view, request, survey, best[0].estimate)
    action = Start(candidate=best[0]) if until_s is None else Wait(reason="a place is free sooner", until_s=until_s)
    return Decision(view_version=view.version, action=action, candidates=best, rejected=survey.rejected)


def best_replica(view: ClusterView, request: StartRequest) -> ReplicaView | None:
    """Rules 1, 2 and 5."""
    newest = request.model.definition
    return min(
        (replica for replica in serving(view, request) if replica.streams < replica.max_streams),
        key=lambda r: (r.phase is not Phase.READY, r.definition != newest, r.streams, r.id),
        default=None,
    )


def serving(view: ClusterView, request: StartRequest) -> Iterator[ReplicaView]:
    """Replicas that may answer, whether they have room or not."""
    for replica in view.of_model(request.model.name):
        if replica.max_streams > 0 and request.model.takes(replica.version) and replica.id not in request.avoid:
            yield replica


def held_back(view: ClusterView, request: StartRequest) -> str | None:
    """Why no start of this model is to be tried now."""
    model = request.model
    if model.definition in view.failed and any(serving(view, request)):
        return "its newest definition does not start"
    if model.max_replicas is not None and sum(1 for _ in serving(view, request)) >= model.max_replicas:
        return "it has its most replicas"
    return None


def free_at_s(view: ClusterView, request: StartRequest, survey: Survey, start: StartEstimate) -> float | None:
    """When a place or room is expected, if waiting for that is sooner than a start (rule 8). One that is late is not
    waited for.

    A start that reads from further away than DRAM displaces what will have to be read again, which counts against it.
    """
    if view.now_s is None:
        return None
    start_s, displaced_s = start.total_s, 0.0 if start.tier == "dram" else start.transfer_s
    expected = (one.frees_at_s for one in serving(view, request) if one.frees_at_s is not None)
    place_s = min((at_s for at_s in expected if at_s >= view.now_s), default=None)
    if place_s is not None and place_s - view.now_s >= start_s:
        place_s = None
    room_s = room_at_s(view, request, survey, start_s + displaced_s if place_s is None else place_s - view.now_s)
    return place_s if room_s is None else room_s


def in_time(decision: Decision, since_s: float) -> Decision:
    """Rule 8's bound: nobody who came at `since_s` waits, all in all, for longer than the start would take."""
    action = decision.action
    if not isinstance(action, Wait) or action.until_s is None or not decision.candidates:
        return decision
    best = decision.candidates[0]
    if action.until_s - since_s <= best.estimate.total_s:
        return decision
    return replace(decision, action=Start(candidate=best))


def without_candidate(view: ClusterView, request: StartRequest, rejected: Mapping[str, int]) -> Decision:
    """Rule 4."""
    model, action = request.model, Wait(reason="no server is up" if not rejected else "every server is busy")
    if rejected and set(rejected) == {TOO_LARGE}:
        need, advice = _need_of(model)
        reason = f"model '{model.name}' needs {need}; no server has that much: {advice}"
        return Decision(view_version=view.version, action=Refuse(reason=reason), rejected=rejected)
    return Decision(view_version=view.version, action=action, rejected=rejected)


def _with_moves(view: ClusterView, survey: Survey, best: list[tuple[Key, Candidate]]) -> tuple[Candidate, ...]:
    """Rule 7: of the candidates with moves the best one, where it beats all others."""
    if view.can_migrate:
        is_harmless = bool(best) and best[0][0][:2] == (False, False)
        limit_s = best[0][1].estimate.total_s if is_harmless else float("inf")
        found = MigrationPlanner(view).best(survey, limit_s)
        if found is not None:
            best = sorted([found, *best])[:KEPT_CANDIDATES]
    return tuple(candidate for _, candidate in best)


def surplus(view: ClusterView, server: ServerName) -> tuple[ReplicaId, ...]:
    """The least recently used idle replicas whose going brings a server back within its memory, as far as they can."""
    found = view.server(server)
    return placement.surplus(found, view.on_server(server)) if found is not None else ()


def _need_of(model: ModelView) -> tuple[str, str]:
    """What it needs, and what to do where no server has that."""
    if model.foreign:
        need = f"{model.device_bytes} bytes of device memory and {model.host_bytes} of the host's"
        return need, "declare less in its config.pbtxt if that is too much, or give servers more"
    need = f"{model.device_bytes} bytes of device memory beside weights and {model.checkpoint_bytes} of DRAM"
    return need, "lower its max_streams or max_sequence_tokens, or give servers more"
