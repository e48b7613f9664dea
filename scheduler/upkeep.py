"""Replicas that come and go without a request: `lifecycle.py`'s plan, carried out when something has happened and when
a time has come that the plan names. Nothing is looked at in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from serverless_triton.scheduler.cluster import Cluster, ReplicaState
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.demand import Demand
from serverless_triton.scheduler.ends import Ends
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.lifecycle import Standing, Wish, plan
from serverless_triton.scheduler.model_lifecycle import ADAPTIVE, NEVER
from serverless_triton.scheduler.policy import Candidate, Decision, Start, StartRequest, Wait
from serverless_triton.scheduler.prefetching import Prefetching
from serverless_triton.scheduler.view import ClusterView, ModelView, Phase
from serverless_triton.scheduler.waiting_room import ModelOrder, OrderOf

SOON_S = 0.05  # events that come together are looked at together
FIRST_AGAIN_S, LAST_AGAIN_S = 1.0, 60.0  # after a start that nobody waits for: the next one, if it failed


@dataclass(slots=True, kw_only=True)
class Upkeep:
    """The control loop's, on its asyncio loop. `lasting` names models that are wanted though nobody asks for them."""

    cluster: Cluster
    ends: Ends
    demand: Demand
    prefetching: Prefetching
    order_of: OrderOf
    choose: Callable[[ClusterView, StartRequest], Decision]
    begin: Callable[[ModelOrder, Candidate], ReplicaState]
    clock: Callable[[], float]
    limits: ControlLimits
    may_act: Callable[[], bool]
    lasting: Callable[[], Iterable[str]]
    _lasting: frozenset[str] = frozenset()
    _timer: asyncio.TimerHandle | None = None
    _tries: dict[str, tuple[int, float]] = field(default_factory=dict)  # by model: how many starts, none before

    def soon(self) -> None:
        """Something has happened."""
        self._arm(SOON_S)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def look_at_repository(self) -> None:
        """Models, or what they say of their replicas, may be others now."""
        self._lasting = frozenset(self.lasting())
        for replica in self.cluster.replicas.values():
            order = self._order(replica.model.name)
            if order is not None and (said := _as_said(replica.model, order.view)) != replica.model:
                replica.model = said
                self.cluster.changed(replica=replica.id)
        for model in {replica.model.name for replica in self.cluster.replicas.values()}:
            self.cluster.keep_minimum(model)
        self.soon()

    def look(self) -> None:
        """Do what is due now."""
        self.close()
        self._timer = None
        if not self.may_act():
            return
        now_s = self.clock()
        orders = self._orders()
        due = plan(self.cluster.view(), {name: self._standing(order) for name, order in orders.items()}, now_s)
        for replica in due.park:
            self.ends.evict(self.cluster.replicas[replica])
        starts = [self._start(orders[name], now_s, harms=name in due.need) for name in (*due.need, *due.start)]
        self._prefetch(orders, now_s)
        times = [time_s for time_s in (due.next_s, *starts, self._next_prefetch_s(now_s)) if time_s is not None]
        if times:
            self._arm(max(SOON_S, min(times) - now_s))

    def _arm(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + delay_s:
                return
            self._timer.cancel()
        self._timer = loop.call_later(delay_s, self.look)

    def _orders(self) -> dict[str, ModelOrder]:
        running = {replica.model.name for replica in self.cluster.replicas.values()}
        found = {name: self._order(name) for name in sorted({*running, *self._lasting, *self.demand})}
        return {name: order for name, order in found.items() if order is not None}

    def _order(self, model: str) -> ModelOrder | None:
        try:
            return self.order_of(model)
        except SchedulerError:  # it is gone, or broken: what runs of it is not ours to end
            return None

    def _standing(self, order: ModelOrder) -> Standing:
        model, said = order.view, order.lifecycle.keep_alive_s
        idle_since_s = self.demand.idle_since_s(model.name)
        if isinstance(said, float) or said == NEVER:
            fixed_s = said if isinstance(said, float) else None
            return Standing(model=model, keep_alive_s=fixed_s, idle_since_s=idle_since_s)
        learns = said == ADAPTIVE or (self.limits.keep_alive_s is None and self.limits.adaptive_keep_alive)
        return Standing(
            model=model,
            keep_alive_s=self.limits.keep_alive_s,
            windows=self.demand.windows(model.name) if learns else None,
            idle_since_s=idle_since_s,
        )

    def _start(self, order: ModelOrder, now_s: float, *, harms: bool) -> float | None:
        """One more replica. Where that must wait: until when, as far as anybody knows."""
        model = order.view
        there = self.cluster.of_model(model.name)
        if any(replica.phase is Phase.LOADING for replica in there):
            return None  # its end is an event
        tries, not_before_s = self._tries.get(model.name, (0, now_s))
        if now_s < not_before_s:
            return not_before_s
        request = StartRequest(model=model, avoid=frozenset(replica.id for replica in there))
        action = self.choose(self.cluster.view(now_s), request).action
        if isinstance(action, Wait):
            return action.until_s
        if not isinstance(action, Start) or not _is_allowed(action.candidate, harms=harms):
            return None  # so is a change of room
        again_s = now_s + min(LAST_AGAIN_S, FIRST_AGAIN_S * 2**tries)
        self._tries[model.name] = (tries + 1, again_s)
        self.begin(order, action.candidate)
        return None

    def is_ready(self, replica: ReplicaState) -> None:
        """It started: the next one need not wait."""
        self._tries.pop(replica.model.name, None)

    def _prefetch(self, orders: dict[str, ModelOrder], now_s: float) -> None:
        self.prefetching.keep_pinned([order.view for order in orders.values() if order.view.pinned])
        if self.limits.prefetch_bytes_per_server:
            horizon_s = self.limits.prefetch_horizon_s
            models = (order.view for order in orders.values() if not order.view.pinned)
            wishes = [Wish(model=one, chance=self.demand.chance(one.name, now_s, horizon_s)) for one in models]
            self.prefetching.wish(wishes)

    def _next_prefetch_s(self, now_s: float) -> float | None:
        """What is expected changes with time alone; nothing is expected where nobody has come yet."""
        wanted = self.limits.prefetch_bytes_per_server and next(iter(self.demand), None) is not None
        return now_s + self.limits.prefetch_horizon_s / 2 if wanted else None


def _is_allowed(candidate: Candidate, *, harms: bool) -> bool:
    """Nobody's stream is troubled for a replica that nobody asks for yet, idle ones only where it must run."""
    return not candidate.preempt and not candidate.moves and (harms or not candidate.evict)


def _as_said(model: ModelView, newest: ModelView) -> ModelView:
    """A running replica's model, with what is said of its replicas now."""
    return replace(
        model,
        min_replicas=newest.min_replicas,
        max_replicas=newest.max_replicas,
        priority=newest.priority,
        pinned=newest.pinned,
    )
