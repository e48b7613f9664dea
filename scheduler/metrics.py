"""The control loop's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

ERROR_BUCKETS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
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
        self._estimate_error = Histogram(
            "serverless_triton_start_estimate_error_ratio",
            "How far off predicted starts were, as a share of the time from the decision until the replica was ready",
            ["state", "tier"],
            buckets=ERROR_BUCKETS,
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

    def estimated(self, state: str, tier: str, relative_error: float) -> None:
        """`tier` is where the bytes came from, whatever was predicted."""
        self._estimate_error.labels(state, tier).observe(relative_error)

    def start_failed(self, model: str, code: str) -> None:
        self._failed.labels(model, code).inc()

    def evicted(self, model: str) -> None:
        self._evicted.labels(model).inc()

    def lost(self, model: str) -> None:
        self._lost.labels(model).inc()
