"""What a gateway counts, for Prometheus. Labels are the repository's models and status codes, nothing a client made."""

from __future__ import annotations

import re
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serverless_triton.scheduler.errors import SchedulerError, StreamLost
from serverless_triton.scheduler.gateway.statuses import error_headers, http_status
from serverless_triton.scheduler.gateway.token_times import TokenTimesByModel
from serverless_triton.scheduler.gateway.upstream import UpstreamError

_QUEUE_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_PREFIX = "serverless_triton_gateway"


class GatewayMetrics:
    """Counters of one gateway, on a registry of their own unless one is given."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry if registry is not None else CollectorRegistry()
        self.requests = Counter(f"{_PREFIX}_requests_total", "Streams accepted", ["model"], registry=registry)
        self.errors = Counter(f"{_PREFIX}_errors_total", "Errors sent to clients", ["code"], registry=registry)
        self.first_token_seconds = Histogram(
            f"{_PREFIX}_first_token_seconds",
            "Request (or the death before a resume) to first token",
            ["model", "kind"],
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.resumed_streams = Counter(
            f"{_PREFIX}_resumed_streams_total",
            "Streams continued on another replica",
            ["model"],
            registry=registry,
        )
        self.dropped_messages = Counter(
            f"{_PREFIX}_dropped_messages_total",
            "Upstream messages of an old attempt or position",
            ["model"],
            registry=registry,
        )
        self.open_streams = Gauge(f"{_PREFIX}_open_streams", "Streams open now", registry=registry)
        self.queue_seconds = Histogram(
            f"{_PREFIX}_queue_seconds",
            "From a request until it had a place on a replica, a start included",
            ["model"],
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self.inter_token_seconds = TokenTimesByModel(
            f"{_PREFIX}_inter_token_seconds",
            "Between the tokens of a stream; those that came together took equal shares",
            registry,
        )
        self.tokens = Counter(
            f"{_PREFIX}_tokens_total", "Tokens of prompts, and generated ones", ["model", "kind"], registry=registry
        )
        self.rejected = Counter(
            f"{_PREFIX}_rejected_total", "Requests that were refused, by why", ["reason"], registry=registry
        )

    def failed(self, error: SchedulerError) -> None:
        """A client hears of this error."""
        self.errors.labels(error.code).inc()
        had_a_place = isinstance(error, (StreamLost, UpstreamError))
        if not had_a_place and type(error) is not SchedulerError:  # which is a bug of ours
            self.rejected.labels(_snake_case(type(error).__name__)).inc()

    def stream(self, model: str) -> StreamFigures:
        """For one stream's own figures."""
        return StreamFigures(self, model)


class StreamFigures:
    """Counts what one stream hears."""

    def __init__(self, metrics: GatewayMetrics, model: str) -> None:
        self._queue_seconds = metrics.queue_seconds.labels(model)
        self._prompt_tokens = metrics.tokens.labels(model, "prompt")
        self._tokens = metrics.tokens.labels(model, "generated")
        self._times = metrics.inter_token_seconds.of(model)
        self._heard_s: float | None = None  # when its last tokens came

    def placed(self, queue_s: float) -> None:
        """It has its first place."""
        self._queue_seconds.observe(queue_s)

    def heard(self, tokens: int, prompt_tokens: int | None, now_s: float) -> None:
        """A message was accepted."""
        if not tokens:
            return
        self._tokens.inc(tokens)
        if self._heard_s is None:
            self._prompt_tokens.inc(prompt_tokens or 0)
        else:
            self._times.add(now_s - self._heard_s, tokens)
        self._heard_s = now_s


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def metrics_app(
    registry: CollectorRegistry, check: Callable[[web.Request], None] = lambda request: None
) -> web.Application:
    """Serves the registry under /metrics, as Triton does on its port 8002. `check` raises what it answers instead."""

    async def metrics(request: web.Request) -> web.Response:
        try:
            check(request)
        except SchedulerError as error:
            return web.Response(text=f"{error}\n", status=http_status(error), headers=error_headers(error))
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    return app
