"""When would a stream get a place? What the control loop can tell those who ask, and those whom it sends away.

A start is predicted by the estimator. Where every place is taken, the model's own streams say how soon one becomes
free: n places that are held h seconds each become free every h/n seconds. Pure: `Prospects` reads the control loop's
picture on its clock and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from serverless_triton.scheduler.admission import Outlook, StreamId
from serverless_triton.scheduler.cluster import Cluster, ReplicaState
from serverless_triton.scheduler.errors import ModelTooLarge
from serverless_triton.scheduler.policy import Policy, Refuse, Start, StartRequest, Use, Wait, choose
from serverless_triton.scheduler.view import ModelView, Phase
from serverless_triton.scheduler.waiting_room import Standing

Action = Use | Start | Wait | Refuse

RETRY_AFTER_S = 1.0  # at least, and where nothing is known
_LEARNING_RATE = 0.2


@dataclass(slots=True)
class HoldTimes:
    """How long streams keep their places, by model: an exponential average over those that ended."""

    _since_s: dict[StreamId, float] = field(default_factory=dict)
    _mean_s: dict[str, float] = field(default_factory=dict)
    _any_s: float | None = None  # of all models together

    def began(self, stream: StreamId, now_s: float) -> None:
        self._since_s[stream] = now_s

    def ended(self, stream: StreamId, model: str, now_s: float) -> None:
        """Of a stream that did not begin, or has ended already, it says nothing."""
        if stream in self._since_s:
            held_s = now_s - self._since_s.pop(stream)
            known_s = self._mean_s.setdefault(model, held_s)
            self._mean_s[model] = known_s + _LEARNING_RATE * (held_s - known_s)
            self._any_s = held_s if self._any_s is None else self._any_s + _LEARNING_RATE * (held_s - self._any_s)

    def forget(self, stream: StreamId) -> None:
        self._since_s.pop(stream, None)

    def mean_s(self, model: str) -> float | None:
        """None before the first of its streams has ended."""
        return self._mean_s.get(model)

    def typical_s(self, model: str) -> float | None:
        """Its mean; before its first stream has ended, that of all models."""
        return self._mean_s.get(model, self._any_s)

    def elapsed_s(self, stream: StreamId, now_s: float) -> float:
        """Since it began; 0 for one that has not."""
        return max(0.0, now_s - self._since_s.get(stream, now_s))


@dataclass(slots=True)
class Prospects:
    """What can be told of waits."""

    cluster: Cluster
    clock: Callable[[], float]
    policy: Policy = choose
    holds: HoldTimes = field(default_factory=HoldTimes)

    def retry_after_s(self, model: ModelView) -> float:
        """When a place might be free for one who comes back."""
        return max(RETRY_AFTER_S, self._place_in_s(model, self._action(model)) or 0.0)

    def outlook(self, model: ModelView, standing: Standing) -> Outlook:
        """Raises ModelTooLarge."""
        action = self._action(model)
        if isinstance(action, Refuse):
            raise ModelTooLarge(action.reason)
        free = isinstance(action, Use) and self.cluster.replicas[action.replica].phase is Phase.READY
        return Outlook(
            model=model.name,
            waiting=standing.starting + standing.before + standing.after,
            queue_position=0 if free else standing.starting + standing.before + 1,
            estimated_start_s=self._place_in_s(model, action, standing.before),
        )

    def _action(self, model: ModelView) -> Action:
        return self.policy(self.cluster.view(), StartRequest(model=model)).action

    def _place_in_s(self, model: ModelView, action: Action, before: int = 0) -> float | None:
        if isinstance(action, Use):
            return self._ready_in_s(self.cluster.replicas[action.replica])
        if isinstance(action, Start):
            return action.candidate.estimate.total_s
        return self._free_in_s(model.name, before) if isinstance(action, Wait) else None

    def _ready_in_s(self, replica: ReplicaState) -> float:
        return 0.0 if replica.phase is Phase.READY else max(0.0, replica.ready_at_s - self.clock())

    def _free_in_s(self, model: str, before: int) -> float | None:
        replicas = [r for r in self.cluster.replicas.values() if r.model.name == model and not r.is_leaving]
        places = sum(replica.model.max_streams for replica in replicas)
        hold_s = self.holds.mean_s(model)
        if not places or hold_s is None:
            return None
        return min(self._ready_in_s(replica) for replica in replicas) + (before + 1) * hold_s / places
