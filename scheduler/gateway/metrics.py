"""What a gateway counts, for Prometheus. Labels are the repository's models and status codes, nothing a client made."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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


def metrics_app(registry: CollectorRegistry) -> web.Application:
    """Serves the registry under /metrics, as Triton does on its port 8002."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    return app
