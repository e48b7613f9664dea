"""What a replica shows under its Triton server's /metrics: TTFT, ITL, tokens, batch, KV memory, queue, start spans.

The stub counts here and publishes once a second from a thread of its own, because each call into Triton's metrics is a
round trip between processes. That is also why the histograms are made of counters, `..._bucket` with `le` as
Prometheus has them: Triton's own kind takes one value a call. Standard library only.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serverless_triton.backend.messages import Loaded, Stats

PREFIX = "serverless_triton_engine_"
TTFT_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ITL_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

# Name → what it means. A name that ends in _total, _bucket, _sum or _count is a counter, the others are gauges.
DESCRIPTIONS = {
    "requests_total": "Requests that ended, by how: a finish reason or a gRPC status",
    "prompt_tokens_total": "Tokens of the prompts that were answered",
    "generated_tokens_total": "Tokens that were generated for requests",
    "ttft_seconds_bucket": "Requests by the time from their arrival to their first token",
    "ttft_seconds_sum": "Seconds from a request's arrival to its first token, summed",
    "ttft_seconds_count": "Requests that got a first token",
    "itl_seconds_bucket": "Tokens by the time since the token before, of the same request",
    "itl_seconds_sum": "Seconds between tokens, summed",
    "itl_seconds_count": "Tokens that came after another",
    "running_requests": "Requests that the engine computes",
    "waiting_requests": "Requests that wait for a place in the engine",
    "reservations": "Catch-ups whose KV memory is held for a stream that may come",
    "kv_used_tokens": "Tokens whose keys and values are held",
    "kv_capacity_tokens": "Tokens that there is KV memory for",
    "batch_tokens": "Tokens of the engine's last step",
    "steps_total": "Steps of the engine",
    "prefilled_tokens_total": "Tokens of prompts and resumed streams that were computed",
    "preemptions_total": "Requests that lost their KV memory to others and were computed again",
    "start_span_seconds": "How long each part of the replica's start took",
}
_COUNTER_ENDINGS = ("_total", "_bucket", "_sum", "_count")
_GAUGES_OF_STATS = {
    "running": "running_requests",
    "waiting": "waiting_requests",
    "reserved": "reservations",
    "kv_tokens_used": "kv_used_tokens",
    "kv_tokens_total": "kv_capacity_tokens",
    "last_batch_tokens": "batch_tokens",
}
_COUNTERS_OF_STATS = {
    "steps": "steps_total",
    "prefilled_tokens": "prefilled_tokens_total",
    "preemptions": "preemptions_total",
}

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One metric's news: the amount that a counter grew by, or a gauge's value."""

    name: str
    labels: Labels
    value: float

    @property
    def is_counter(self) -> bool:
        return self.name.endswith(_COUNTER_ENDINGS)


class StubMetrics:
    """The figures of one stub. Any thread counts, one takes the changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed: dict[tuple[str, Labels], float] = {}
        self._stats: Stats | None = None
        for name, bounds in (("ttft_seconds", TTFT_BOUNDS_S), ("itl_seconds", ITL_BOUNDS_S)):
            self._observe(name, bounds, 0.0, 0)  # all buckets exist from the start, so that rates have a beginning

    def ended(self, how: str) -> None:
        """A request's end: its finish reason or the gRPC status that it failed with."""
        with self._lock:
            self._grow("requests_total", 1, ("code", how))

    def first_tokens(self, after_s: float, count: int, prompt_tokens: int) -> None:
        """A request's first message with tokens, `after_s` after it came."""
        with self._lock:
            self._grow("prompt_tokens_total", prompt_tokens)
            self._grow("generated_tokens_total", count)
            self._observe("ttft_seconds", TTFT_BOUNDS_S, after_s, 1)

    def next_tokens(self, after_s: float, count: int) -> None:
        """Tokens that came together, `after_s` after those before: each took an equal share of it."""
        with self._lock:
            self._grow("generated_tokens_total", count)
            self._observe("itl_seconds", ITL_BOUNDS_S, after_s / count, count)

    def engine(self, stats: Stats) -> None:
        with self._lock:
            before, self._stats = self._stats, stats
            for field, name in _GAUGES_OF_STATS.items():
                self._changed[name, ()] = getattr(stats, field)
            for field, name in _COUNTERS_OF_STATS.items():
                self._grow(name, getattr(stats, field) - (0 if before is None else getattr(before, field)))

    def engine_left(self) -> None:
        """What is left of an engine once its worker has gone: nothing is running, held or waiting."""
        with self._lock:
            for name in _GAUGES_OF_STATS.values():
                self._changed[name, ()] = 0

    def started(self, loaded: Loaded) -> None:
        """The spans of a start. An engine that is new counts from 0 again."""
        with self._lock:
            self._stats = None
            for name, start_s, end_s in loaded.spans:
                self._changed["start_span_seconds", (("span", name), ("tier", loaded.tier))] = end_s - start_s

    def take_changes(self) -> list[Change]:
        """What has changed since the last call."""
        with self._lock:
            changed, self._changed = self._changed, {}
        return [Change(name=name, labels=labels, value=value) for (name, labels), value in sorted(changed.items())]

    def _grow(self, name: str, amount: float, *labels: tuple[str, str]) -> None:
        self._changed[name, labels] = self._changed.get((name, labels), 0.0) + amount

    def _observe(self, name: str, bounds: Sequence[float], value: float, count: int) -> None:
        """Buckets are cumulative: a value counts in each whose bound it does not pass."""
        first = bisect_left(bounds, value)
        for index, bound in enumerate((*bounds, float("inf"))):
            grows = count if index >= first else 0
            if grows or not count:
                self._grow(f"{name}_bucket", grows, ("le", "+Inf" if bound == float("inf") else str(bound)))
        self._grow(f"{name}_sum", value * count)
        self._grow(f"{name}_count", count)


class TritonPublisher:
    """Writes changes to Triton's metrics; `utils` is triton_python_backend_utils. One thread at a time.

    Families are shared by all models of a server, so every metric has the label `model`. No two stubs have the same
    label `stub`: Triton deletes a metric with the first stub that goes, also where another has one alike,
    and crashes when that one is written.
    """

    def __init__(self, utils: Any, model: str, stub: str) -> None:
        self._utils = utils
        self._labels = {"model": model, "stub": stub}
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, Labels], Any] = {}

    def publish(self, changes: Sequence[Change]) -> None:
        """Raises Triton's exceptions."""
        for change in changes:
            metric = self._metric(change)
            if not change.is_counter:
                metric.set(change.value)
            elif change.value > 0:
                metric.increment(change.value)

    def close(self) -> None:
        """Takes this replica's figures off the page; Triton wants metrics gone before their families."""
        self._metrics.clear()
        self._families.clear()

    def _metric(self, change: Change) -> Any:
        key = (change.name, change.labels)
        if key not in self._metrics:
            labels = {**self._labels, **dict(change.labels)}
            self._metrics[key] = self._family(change).Metric(labels=labels)
        return self._metrics[key]

    def _family(self, change: Change) -> Any:
        if change.name not in self._families:
            kinds = self._utils.MetricFamily
            self._families[change.name] = kinds(
                name=PREFIX + change.name,
                description=DESCRIPTIONS[change.name],
                kind=kinds.COUNTER if change.is_counter else kinds.GAUGE,
            )
        return self._families[change.name]
