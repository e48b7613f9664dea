"""What the gateway counts of streams, tokens and refusals."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import generate_latest

from serverless_triton.scheduler.errors import AdmissionTimeout, NoCapacity, SchedulerError, StreamLost
from serverless_triton.scheduler.gateway.metrics import GatewayMetrics
from serverless_triton.scheduler.gateway.service import Unsupported
from serverless_triton.scheduler.gateway.upstream import RequestFailed
from tests.unit.gateway.test_relay import collect

PREFIX = "serverless_triton_gateway_"


def value(metrics: GatewayMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(PREFIX + name, labels)


def test_tokens_that_came_together_took_equal_shares_of_the_time():
    metrics = GatewayMetrics()
    stream = metrics.stream("m")
    stream.heard(1, 3, now_s=10.0)
    stream.heard(4, 3, now_s=10.8)
    assert value(metrics, "inter_token_seconds_count", model="m") == 4
    assert value(metrics, "inter_token_seconds_sum", model="m") == pytest.approx(0.8)
    assert value(metrics, "inter_token_seconds_bucket", model="m", le="0.1") == 0
    assert value(metrics, "inter_token_seconds_bucket", model="m", le="0.25") == 4
    assert value(metrics, "inter_token_seconds_bucket", model="m", le="+Inf") == 4


def test_a_pause_beyond_the_last_bound_is_counted():
    metrics = GatewayMetrics()
    stream = metrics.stream("m")
    stream.heard(1, 3, now_s=0.0)
    stream.heard(1, 3, now_s=60.0)
    assert value(metrics, "inter_token_seconds_bucket", model="m", le="2.5") == 0
    assert value(metrics, "inter_token_seconds_bucket", model="m", le="+Inf") == 1


def test_a_heartbeat_is_no_token():
    metrics = GatewayMetrics()
    stream = metrics.stream("m")
    stream.heard(0, None, now_s=1.0)
    stream.heard(1, 3, now_s=5.0)
    assert value(metrics, "inter_token_seconds_count", model="m") == 0
    assert value(metrics, "tokens_total", model="m", kind="prompt") == 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NoCapacity("full"), "no_capacity"),
        (AdmissionTimeout("late"), "admission_timeout"),
        (Unsupported("no"), "unsupported"),
    ],
)
def test_a_refused_request_is_counted_by_its_reason(error: SchedulerError, reason: str):
    metrics = GatewayMetrics()
    metrics.failed(error)
    assert value(metrics, "rejected_total", reason=reason) == 1
    assert value(metrics, "errors_total", code=error.code) == 1


@pytest.mark.parametrize("error", [StreamLost("died"), RequestFailed("INTERNAL", "no"), SchedulerError("internal")])
def test_an_error_of_a_stream_that_had_a_place_is_no_refusal(error: SchedulerError):
    metrics = GatewayMetrics()
    metrics.failed(error)
    assert b"rejected_total{" not in generate_latest(metrics.registry)
    assert value(metrics, "errors_total", code=error.code) == 1


async def test_a_resumed_streams_prompt_and_tokens_count_once(relay, upstream, streamed):
    task = asyncio.ensure_future(collect(relay.open(streamed)))
    first = await upstream.call(0)
    first.tokens(0, 1, 2)
    first.fail("UNAVAILABLE", "worker died")
    (await upstream.call(1)).tokens(2, 3, finish_reason="stop")
    await task
    assert value(relay.metrics, "tokens_total", model="m", kind="generated") == 3
    assert value(relay.metrics, "tokens_total", model="m", kind="prompt") == 1
    assert value(relay.metrics, "queue_seconds_count", model="m") == 1
