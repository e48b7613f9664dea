"""The control loop's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

START_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)


class ControlMetrics:
    """Starts, failed starts, evictions and lost replicas, by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._start_seconds = Histogram(
            "serverless_triton_start_seconds",
            "Seconds from the decision to start a replica until it was ready",
            ["model", "state", "tier"],
            buckets=START_BUCKETS_S,
            registry=registry,
        )
        self._failed = Counter(
            "serverless_triton_failed_starts_total", "Starts that failed", ["model", "code"], registry=registry
        )
        self._evicted = Counter(
            "serverless_triton_evictions_total",
            "Idle replicas that made room, or that nobody asked for any more",
            ["model"],
            registry=registry,
        )
        self._lost = Counter(
            "serverless_triton_lost_replicas_total",
            "Replicas whose worker, stub or server died",
            ["model"],
            registry=registry,
        )

    def started(self, model: str, state: str, tier: str, seconds: float) -> None:
        self._start_seconds.labels(model, state, tier).observe(seconds)

    def start_failed(self, model: str, code: str) -> None:
        self._failed.labels(model, code).inc()

    def evicted(self, model: str) -> None:
        self._evicted.labels(model).inc()

    def lost(self, model: str) -> None:
        self._lost.labels(model).inc()
