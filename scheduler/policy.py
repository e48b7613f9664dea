"""Where does it start soonest? A pure function of the view and the request (decision 12).

1. A ready replica with room takes the stream: the one with the fewest streams.
2. A replica that is being started already is joined: one load serves all who ask.
3. Otherwise it starts where the estimate is lowest, idle replicas making room there, the least recently used first. A
   parked stub of the model lowers it, because Triton has nothing to load then.
4. Where nothing can be freed it waits; where nothing could ever be freed it is refused.
5. Where the model's definition has changed, replicas of the newest take streams first, and those of an older one until
   there are such. They make room for a start of the newest last, and where one failed nothing but they serve.
6. A server runs one version of a model at a time: an idle replica of another goes, for a busy one it waits.

Ties are broken by id. A replica that a stream holds is never evicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.estimator import StartEstimate, estimate_start
from serverless_triton.scheduler.view import ClusterView, ModelView, Phase, ReplicaView, ServerView

KEPT_CANDIDATES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """One stream's wish. `avoid` names replicas that it broke on, `avoid_servers` where its start failed."""

    model: ModelView
    avoid: frozenset[ReplicaId] = frozenset()
    avoid_servers: frozenset[ServerName] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A server that could start the model once these replicas are evicted; on a parked stub, if it has one."""

    server: ServerName
    evict: tuple[ReplicaId, ...]
    estimate: StartEstimate
    parked: ReplicaId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Take a place on this replica, ready or on its way."""

    replica: ReplicaId


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start a replica there."""

    candidate: Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Until something changes."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """No change of load would help."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do, and why: the best candidates, and how many servers were rejected for which reason."""

    view_version: int
    action: Use | Start | Wait | Refuse
    candidates: tuple[Candidate, ...] = ()
    rejected: Mapping[str, int] = field(default_factory=dict)


def choose(view: ClusterView, request: StartRequest) -> Decision:
    """The decision for one request. Same view, same decision."""
    replica = _best_replica(view, request)
    if replica is not None:
        return Decision(view_version=view.version, action=Use(replica=replica.id))
    candidates, rejected = _candidates(view, request)
    best = tuple(candidates[:KEPT_CANDIDATES])
    action = Start(candidate=best[0]) if best else _without_candidate(request.model, rejected)
    return Decision(view_version=view.version, action=action, candidates=best, rejected=rejected)


def _best_replica(view: ClusterView, request: StartRequest) -> ReplicaView | None:
    usable = [
        replica
        for replica in view.replicas
        if replica.model == request.model.name
        and request.model.takes(replica.version)
        and replica.id not in request.avoid
        and replica.streams < replica.max_streams
    ]
    newest = request.model.definition
    return min(
        usable, key=lambda r: (r.phase is not Phase.READY, r.definition != newest, r.streams, r.id), default=None
    )


def overdue(view: ClusterView, now_s: float, keep_alive_s: float) -> list[ReplicaId]:
    """Replicas that nobody has used for that long."""
    return [r.id for r in view.replicas if r.is_idle and now_s - r.idle_since_s >= keep_alive_s]


def _candidates(view: ClusterView, request: StartRequest) -> tuple[list[Candidate], dict[str, int]]:
    candidates: list[Candidate] = []
    rejected: Counter[str] = Counter()
    if _is_held_back(view, request):
        return [], {"its newest definition does not start": len(view.servers)}
    for server in view.servers:
        outcome = _consider(server, view.by_server.get(server.name, ()), request)
        if isinstance(outcome, Candidate):
            candidates.append(outcome)
        else:
            rejected[outcome] += 1
    own = {replica.id for replica in view.replicas if replica.model == request.model.name}
    candidates.sort(key=lambda c: (not own.isdisjoint(c.evict), c.estimate.total_s, len(c.evict), c.server))
    return candidates, dict(rejected)


def _is_held_back(view: ClusterView, request: StartRequest) -> bool:
    """Replicas of an older definition serve, and a start of the newest has failed beside them."""
    return request.model.definition in view.failed and any(
        replica.model == request.model.name
        and request.model.takes(replica.version)
        and replica.id not in request.avoid
        and replica.max_streams > 0
        for replica in view.replicas
    )


def _consider(server: ServerView, replicas: Iterable[ReplicaView], request: StartRequest) -> Candidate | str:
    """A candidate, or why this server is none."""
    model = request.model
    if server.name in request.avoid_servers:
        return "its start failed there"
    dram_bytes = model.checkpoint_bytes + server.host_bytes_of(model)
    if server.device_bytes_of(model) > server.device_memory_bytes or dram_bytes > server.dram_bytes:
        return "too large"
    replicas = tuple(replicas)
    if any(replica.model == model.name and replica.definition == model.definition for replica in replicas):
        return "has a replica"
    # Servers tell models apart by name: one version runs at a time, of another backend's model one definition.
    rivals = tuple(r for r in replicas if r.model == model.name and (model.foreign or r.version in model.others))
    if not all(one.is_idle for one in rivals):
        return "runs another version"
    evict = _make_room(server, tuple(replica for replica in replicas if replica not in rivals), model)
    if evict is None:
        return "busy"
    estimate, parked = estimate_start(server, model), server.parked_stub(model)
    return Candidate(server=server.name, evict=(*(one.id for one in rivals), *evict), estimate=estimate, parked=parked)


def _make_room(server: ServerView, replicas: tuple[ReplicaView, ...], model: ModelView) -> tuple[ReplicaId, ...] | None:
    """The least recently used idle replicas whose going makes room in device memory and DRAM, the model's own older
    ones last; None if that is not enough.
    """
    staying = {replica.id: replica for replica in replicas}
    evict: list[ReplicaId] = []
    idle = sorted((r for r in replicas if r.is_idle), key=lambda r: (r.model == model.name, r.idle_since_s, r.id))
    while not _fits(server, staying.values(), model):
        if len(evict) == len(idle):
            return None
        victim = idle[len(evict)]
        evict.append(victim.id)
        del staying[victim.id]
    return tuple(evict)


def surplus(view: ClusterView, server: ServerName) -> tuple[ReplicaId, ...]:
    """The least recently used idle replicas whose going brings a server back within its memory, as far as they can."""
    replicas = view.by_server.get(server, ())
    found = next((one for one in view.servers if one.name == server), None)
    staying = {replica.id: replica for replica in replicas}
    evict: list[ReplicaId] = []
    for victim in sorted((r for r in replicas if r.is_idle), key=lambda r: (r.idle_since_s, r.id)):
        if found is None or _fit(found, staying.values()):
            break
        evict.append(victim.id)
        del staying[victim.id]
    return tuple(evict)


def _fits(server: ServerView, replicas: Iterable[ReplicaView], model: ModelView) -> bool:
    return _fit(server, (*replicas, model))


def _fit(server: ServerView, together: Iterable[ReplicaView | ModelView]) -> bool:
    """Weights of one checkpoint count once in DRAM, however many replicas use them."""
    device_bytes = host_bytes = 0
    checkpoints: dict[str, int] = {}
    for one in together:
        device_bytes += server.device_bytes_of(one)
        host_bytes += server.host_bytes_of(one)
        checkpoints[one.checkpoint] = one.checkpoint_bytes
    return device_bytes <= server.device_memory_bytes and sum(checkpoints.values()) + host_bytes <= server.dram_bytes


def _without_candidate(model: ModelView, rejected: Mapping[str, int]) -> Wait | Refuse:
    if rejected and set(rejected) == {"too large"}:
        need, advice = _need_of(model)
        return Refuse(reason=f"model '{model.name}' needs {need}; no server has that much: {advice}")
    return Wait(reason="no server is up" if not rejected else "every server is busy")


def _need_of(model: ModelView) -> tuple[str, str]:
    """What it needs, and what to do where no server has that."""
    if model.foreign:
        need = f"{model.device_bytes} bytes of device memory and {model.host_bytes} of the host's"
        return need, "declare less in its config.pbtxt if that is too much, or give servers more"
    need = f"{model.device_bytes} bytes of device memory beside weights and {model.checkpoint_bytes} of DRAM"
    return need, "lower its max_streams or max_sequence_tokens, or give servers more"
