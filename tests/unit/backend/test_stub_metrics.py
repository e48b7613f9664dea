"""A stub's figures, and their way into Triton's metrics, with Triton's side played by hand."""

from __future__ import annotations

from typing import Any

import pytest

from serverless_triton.backend.messages import Loaded, Stats
from serverless_triton.backend.stub_metrics import (
    DESCRIPTIONS,
    ITL_BOUNDS_S,
    PREFIX,
    TTFT_BOUNDS_S,
    StubMetrics,
    TritonPublisher,
)


def stats(**changes: int) -> Stats:
    values = {
        "running": 2,
        "waiting": 1,
        "reserved": 0,
        "kv_tokens_used": 96,
        "kv_tokens_total": 512,
        "steps": 10,
        "prefilled_tokens": 30,
        "preemptions": 0,
        "last_batch_tokens": 2,
    }
    return Stats(**{**values, **changes})


class Figures:
    """What a page would show after everything so far."""

    def __init__(self) -> None:
        self.metrics = StubMetrics()
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def of(self, name: str, **labels: str) -> float:
        for change in self.metrics.take_changes():
            key = (change.name, change.labels)
            self._values[key] = change.value + (self._values.get(key, 0.0) if change.is_counter else 0.0)
        return self._values[name, tuple(labels.items())]


@pytest.fixture
def figures() -> Figures:
    return Figures()


def test_a_bucket_counts_all_that_took_no_longer_than_its_bound(figures: Figures):
    for after_s in (0.02, 0.05, 99.0):
        figures.metrics.first_tokens(after_s, 1, prompt_tokens=3)
    counts = {bound: figures.of("ttft_seconds_bucket", le=bound) for bound in ("0.01", "0.025", "0.05", "30.0", "+Inf")}
    assert counts == {"0.01": 0, "0.025": 1, "0.05": 2, "30.0": 2, "+Inf": 3}
    assert figures.of("ttft_seconds_sum") == pytest.approx(99.07)
    assert (figures.of("ttft_seconds_count"), figures.of("prompt_tokens_total")) == (3, 9)


def test_tokens_that_came_together_share_the_time_between_them(figures: Figures):
    figures.metrics.first_tokens(1.0, 2, prompt_tokens=3)
    figures.metrics.next_tokens(0.08, 4)
    assert figures.of("itl_seconds_bucket", le="0.01") == 0
    assert figures.of("itl_seconds_bucket", le="0.025") == 4
    assert figures.of("itl_seconds_sum") == pytest.approx(0.08)
    assert figures.of("generated_tokens_total") == 6


def test_every_bucket_is_there_before_anything_was_measured(figures: Figures):
    names = [(change.name, change.labels) for change in figures.metrics.take_changes()]
    for name, bounds in (("ttft_seconds", TTFT_BOUNDS_S), ("itl_seconds", ITL_BOUNDS_S)):
        assert len([n for n, _ in names if n == f"{name}_bucket"]) == len(bounds) + 1


def test_requests_are_counted_by_how_they_ended(figures: Figures):
    for how in ("stop", "stop", "UNAVAILABLE"):
        figures.metrics.ended(how)
    assert (figures.of("requests_total", code="stop"), figures.of("requests_total", code="UNAVAILABLE")) == (2, 1)


def test_an_engines_totals_become_counters_and_its_state_gauges(figures: Figures):
    figures.metrics.engine(stats())
    figures.metrics.engine(stats(steps=15, running=0, preemptions=1))
    assert (figures.of("steps_total"), figures.of("preemptions_total")) == (15, 1)
    assert (figures.of("running_requests"), figures.of("kv_used_tokens")) == (0, 96)


def test_the_next_engine_of_a_stub_counts_on(figures: Figures):
    loaded = Loaded(replica="r", tier="dram", bytes=1, spans=[])
    figures.metrics.engine(stats())
    figures.metrics.started(loaded)
    figures.metrics.engine(stats(steps=4))
    assert figures.of("steps_total") == 14


def test_an_engine_that_has_gone_runs_and_holds_nothing(figures: Figures):
    figures.metrics.engine(stats(kv_tokens_used=96, steps=10))
    figures.metrics.engine_left()
    assert [figures.of(name) for name in ("running_requests", "kv_used_tokens", "kv_capacity_tokens")] == [0, 0, 0]
    assert figures.of("steps_total") == 10


def test_a_starts_spans_have_their_names_and_the_tier(figures: Figures):
    figures.metrics.started(Loaded(replica="r", tier="ssd", bytes=1, spans=[("store.load", 10.0, 10.5)]))
    assert figures.of("start_span_seconds", span="store.load", tier="ssd") == 0.5


def test_what_has_not_changed_is_not_written_again(figures: Figures):
    figures.metrics.ended("stop")
    figures.metrics.take_changes()
    assert figures.metrics.take_changes() == []


class Metric:
    def __init__(self) -> None:
        self.value = 0.0

    def increment(self, by: float) -> None:
        assert by > 0
        self.value += by

    def set(self, value: float) -> None:
        self.value = value


class Utils:
    """Triton's module, as far as metrics go."""

    def __init__(self) -> None:
        made: dict[str, Any] = {}
        self.made = made

        class MetricFamily:
            COUNTER, GAUGE = "counter", "gauge"

            def __init__(self, name: str, description: str, kind: str) -> None:
                assert name not in made
                made[name] = self
                self.kind, self.metrics = kind, {}

            def Metric(self, labels: dict[str, str]) -> Metric:  # noqa: N802 - Triton's name
                return self.metrics.setdefault(tuple(sorted(labels.items())), Metric())

        self.MetricFamily = MetricFamily


def test_changes_are_written_to_families_of_their_kind_under_the_model_and_its_stub():
    utils, metrics = Utils(), StubMetrics()
    publisher = TritonPublisher(utils, "m", "m-1")
    for _ in range(2):
        metrics.engine(stats())
        metrics.ended("stop")
        publisher.publish(metrics.take_changes())
    requests, running = (utils.made[PREFIX + name] for name in ("requests_total", "running_requests"))
    assert (requests.kind, running.kind) == ("counter", "gauge")
    assert requests.metrics[(("code", "stop"), ("model", "m"), ("stub", "m-1"))].value == 2
    assert running.metrics[(("model", "m"), ("stub", "m-1"))].value == 2
    assert set(utils.made) <= {PREFIX + name for name in DESCRIPTIONS}


def test_no_two_stubs_of_a_model_share_a_metric():
    labels = list[set[Any]]()
    for stub in ("m-1", "m-2"):
        utils, metrics = Utils(), StubMetrics()
        metrics.engine(stats())
        TritonPublisher(utils, "m", stub).publish(metrics.take_changes())
        labels.append(set(utils.made[PREFIX + "running_requests"].metrics))

    assert labels[0] & labels[1] == set()
