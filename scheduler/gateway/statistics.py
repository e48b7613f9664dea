"""Counts and durations per model, as Triton's ModelStatistics reports them.

A gateway's figures are of requests as clients saw them: queue is the time to a place on a replica, compute_infer the
rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tritonclient.grpc import service_pb2 as pb


@dataclass(slots=True)
class Duration:
    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += int(seconds * 1e9)


@dataclass(slots=True)
class ModelCounts:
    """What has happened to one version of a model."""

    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)


class Statistics:
    """The counts of every model asked for since start, by name and version."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], ModelCounts] = {}

    def succeeded(self, model: str, version: str, *, total_s: float, queue_s: float, now_ms: int) -> None:
        counts = self._counts(model, version)
        counts.last_inference_ms = now_ms
        counts.success.add(total_s)
        counts.queue.add(queue_s)
        counts.compute_infer.add(max(0.0, total_s - queue_s))

    def failed(self, model: str, version: str, *, total_s: float, now_ms: int) -> None:
        counts = self._counts(model, version)
        counts.last_inference_ms = now_ms
        counts.fail.add(total_s)

    def report(self, model: str, version: str) -> pb.ModelStatistics:
        """A model nobody asked for yet has zeros."""
        counts = self._models.get((model, version), ModelCounts())
        succeeded = counts.success.count
        statistics = pb.ModelStatistics(
            name=model,
            version=version,
            last_inference=counts.last_inference_ms,
            inference_count=succeeded,
            execution_count=succeeded,
        )
        _fill(statistics.inference_stats, counts)
        if succeeded:
            batch = statistics.batch_stats.add(batch_size=1)
            for part in (batch.compute_input, batch.compute_output):
                part.count = succeeded
            batch.compute_infer.count, batch.compute_infer.ns = counts.compute_infer.count, counts.compute_infer.ns
        return statistics

    def _counts(self, model: str, version: str) -> ModelCounts:
        return self._models.setdefault((model, version), ModelCounts())


def _fill(target: pb.InferStatistics, counts: ModelCounts) -> None:
    parts = {
        "success": counts.success,
        "fail": counts.fail,
        "queue": counts.queue,
        "compute_infer": counts.compute_infer,
        "compute_input": Duration(counts.success.count),
        "compute_output": Duration(counts.success.count),
        "cache_hit": Duration(),
        "cache_miss": Duration(),
    }
    for name, duration in parts.items():
        part = getattr(target, name)
        part.count, part.ns = duration.count, duration.ns
        part.SetInParent()
