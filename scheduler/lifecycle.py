"""Which replicas nobody needs any more, which are missing, what is worth having in DRAM before it is asked for (pure).

1. A replica that was idle for its model's keep-alive goes. Where that is learned (`demand.py`), it goes as soon as the
   model is idle if nobody comes for a while, is back before somebody does, and goes when nobody is expected any more.
2. A model has `min_replicas` at least, and `max_replicas` at most.
3. Checkpoints that will be wanted soonest for their size are read into DRAM, within a byte budget a server. Those of
   pinned models come first and count in no budget.

A replica that is used, pinned, or one of its model's `min_replicas` stays.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.demand import Windows
from serverless_triton.scheduler.view import ClusterView, ModelView, Phase, ReplicaView

GRACE_S = 1.0  # how long an idle replica stays at least where idle times say that nobody comes for a while


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One model: what it needs, how long its idle replicas stay, and what is known of who comes.

    `keep_alive_s` None: as long as nobody needs the room. With `windows` it is learned, and they say more.
    """

    model: ModelView
    keep_alive_s: float | None = None
    windows: Windows | None = None
    idle_since_s: float | None = None  # the model's, on all servers; None: it is used


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`start` where there is room without harming anybody, `need` also at the cost of idle replicas. `next_s`: when to
    look again if nothing happens before; None: not at all.
    """

    park: tuple[ReplicaId, ...] = ()
    need: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    next_s: float | None = None


def plan(view: ClusterView, standings: Mapping[str, Standing], now_s: float) -> Plan:
    """`standings` by model, of all that run or should."""
    by_model: dict[str, list[ReplicaView]] = defaultdict(list)
    for replica in view.replicas:
        if replica.max_streams > 0:  # others are leaving
            by_model[replica.model].append(replica)
    park: list[ReplicaId] = []
    need: list[str] = []
    start: list[str] = []
    times: list[float] = []
    for name, standing in sorted(standings.items()):
        replicas = by_model[name]
        gone, later = _overdue(replicas, standing, now_s)
        park += gone
        times += later
        if len(replicas) < standing.model.min_replicas:
            need.append(name)
        elif not replicas and _is_expected(standing, now_s):
            start.append(name)
        times += _returns(standing, now_s)
    return Plan(park=tuple(park), need=tuple(need), start=tuple(start), next_s=min(times, default=None))


def _overdue(replicas: Iterable[ReplicaView], standing: Standing, now_s: float) -> tuple[list[ReplicaId], list[float]]:
    """Who goes now, the longest idle first, and when others would."""
    replicas = list(replicas)
    spare = len(replicas) - standing.model.min_replicas
    gone: list[ReplicaId] = []
    later: list[float] = []
    if standing.model.pinned:
        return [], []
    for replica in sorted((r for r in replicas if r.is_idle), key=lambda r: (r.idle_since_s, r.id)):
        until_s = _stays_until_s(replica, standing, now_s)
        if until_s is None or spare <= 0:
            continue
        if until_s <= now_s:
            gone.append(replica.id)
            spare -= 1
        else:
            later.append(until_s)
    return gone, later


def _stays_until_s(replica: ReplicaView, standing: Standing, now_s: float) -> float | None:
    windows, idle_since_s = standing.windows, standing.idle_since_s
    if windows is None:
        return None if standing.keep_alive_s is None else replica.idle_since_s + standing.keep_alive_s
    if idle_since_s is None:  # others of the model are used: this one as if it were alone
        return replica.idle_since_s + windows.until_s
    if now_s < idle_since_s + windows.away_s:
        return max(replica.idle_since_s, idle_since_s) + GRACE_S
    return idle_since_s + windows.until_s


def _is_expected(standing: Standing, now_s: float) -> bool:
    windows, idle_since_s = standing.windows, standing.idle_since_s
    if windows is None or idle_since_s is None or not windows.away_s:
        return False
    return idle_since_s + windows.away_s <= now_s < idle_since_s + windows.until_s


def _returns(standing: Standing, now_s: float) -> list[float]:
    windows, idle_since_s = standing.windows, standing.idle_since_s
    if windows is None or idle_since_s is None or not windows.away_s:
        return []
    return [at_s for at_s in (idle_since_s + windows.away_s,) if at_s > now_s]


def protected(replicas: Iterable[ReplicaView], models: Mapping[str, ModelView]) -> frozenset[ReplicaId]:
    """Those that make room for nobody: of pinned models, and as many as their models' `min_replicas`."""
    kept: set[ReplicaId] = set()
    counts: Counter[str] = Counter()
    for replica in sorted(replicas, key=lambda r: (r.phase is not Phase.READY, -r.streams, r.id)):
        model = models[replica.id]
        if replica.max_streams > 0 and (model.pinned or counts[replica.model] < model.min_replicas):
            kept.add(replica.id)
            counts[replica.model] += 1
    return frozenset(kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A checkpoint that would be good to have in DRAM: `chance` that somebody comes for it soon, 0 to 1."""

    model: ModelView
    chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetch:
    """Read the model's checkpoint into that server's DRAM."""

    server: ServerName
    model: str


def prefetches(
    view: ClusterView,
    wishes: Iterable[Wish],
    held_bytes: Mapping[ServerName, int],
    budget_bytes: int,
    least_chance: float = 0.1,
) -> tuple[Prefetch, ...]:
    """What to read now, most worth first. `held_bytes`: what of earlier prefetches a server still holds."""
    room = {server.name: budget_bytes - held_bytes.get(server.name, 0) for server in view.servers}
    chosen: list[Prefetch] = []
    for wish in sorted(wishes, key=_worth):
        model = wish.model
        if model.foreign or (not model.pinned and wish.chance < least_chance) or _is_held(view, model):
            continue
        fitting = [one for one in view.servers if one.dram_bytes >= model.checkpoint_bytes]
        if not model.pinned:
            fitting = [one for one in fitting if room[one.name] >= model.checkpoint_bytes]
        if fitting:
            best = min(fitting, key=lambda one: (-room[one.name], one.name)).name
            room[best] -= 0 if model.pinned else model.checkpoint_bytes
            chosen.append(Prefetch(server=best, model=model.name))
    return tuple(chosen)


def _worth(wish: Wish) -> tuple[bool, int, float, str]:
    """Pinned ones, then by priority, then by what a byte of DRAM saves."""
    model = wish.model
    return not model.pinned, -model.priority, -wish.chance / max(1, model.checkpoint_bytes), model.name


def _is_held(view: ClusterView, model: ModelView) -> bool:
    """In DRAM already, or on its way there with a replica."""
    there = any(model.checkpoint in server.in_dram for server in view.servers)
    return there or any(replica.checkpoint == model.checkpoint for replica in view.replicas)
