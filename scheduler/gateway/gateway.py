"""One gateway: its journal, relay, servers and books, put together and started."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from serverless_triton.scheduler.admission import Admission
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.gateway.access import Access, CheckedCalls
from serverless_triton.scheduler.gateway.grpc_v2 import GrpcFrontend, GrpcServer
from serverless_triton.scheduler.gateway.health import HealthService
from serverless_triton.scheduler.gateway.http_site import HttpSite
from serverless_triton.scheduler.gateway.http_v2 import HttpFrontend
from serverless_triton.scheduler.gateway.keys import KeyRing
from serverless_triton.scheduler.gateway.limits import Limiter
from serverless_triton.scheduler.gateway.message_budget import MessageBudget
from serverless_triton.scheduler.gateway.metrics import GatewayMetrics, metrics_app
from serverless_triton.scheduler.gateway.openai.frontend import OpenAIFrontend
from serverless_triton.scheduler.gateway.progress import ProgressReports
from serverless_triton.scheduler.gateway.relay import Relay
from serverless_triton.scheduler.gateway.sequences import Sequences
from serverless_triton.scheduler.gateway.service import InferenceService
from serverless_triton.scheduler.gateway.settings import GatewaySettings, is_loopback
from serverless_triton.scheduler.gateway.statistics import Statistics
from serverless_triton.scheduler.gateway.tls import http_context
from serverless_triton.scheduler.gateway.tracing import Tracing, traced_requests
from serverless_triton.scheduler.gateway.upstream import GrpcUpstream, Upstream
from serverless_triton.scheduler.journal import Journal
from serverless_triton.scheduler.receipts import ReceiptBook


async def _nothing() -> dict[str, Any]:
    return {}


class Gateway:
    """Made in a running event loop. `receipts`, `journal`, `metrics` and `http_app` are there to be read."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        admission: Admission,
        settings: GatewaySettings | None = None,
        upstream: Upstream | None = None,
        metrics: GatewayMetrics | None = None,
        tracing: Tracing | None = None,
        cluster_status: Callable[[], Awaitable[dict[str, Any]]] = _nothing,
        can_serve: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """It calls itself ready while it listens and `can_serve`.

        Raises ConfigError for keys that cannot be read, CertificateUnusable.
        """
        settings = settings or GatewaySettings()
        self._budget = MessageBudget(settings.max_bytes_in_flight)
        self._limiter = Limiter(clock, time.time, max_open_calls=settings.connections.max_calls_per_key)
        self._access = Access(None if settings.keys_file is None else KeyRing(settings.keys_file), self._limiter)
        self.metrics = metrics or GatewayMetrics()
        self.journal = Journal()
        self.receipts = ReceiptBook()
        self._tracing = tracing or Tracing()
        self._statistics = Statistics()
        self._upstream = upstream or GrpcUpstream(max_message_bytes=settings.max_message_bytes)
        self._open = False
        self._can_serve = can_serve
        self._sequences = Sequences(admission)
        self._progress = ProgressReports(self.journal, admission)
        self._reporting: asyncio.Task[None] | None = None
        self._relay = self._make_relay(admission, settings, clock)
        service = self._make_service(catalogue, admission, settings)
        self._make_servers(service, settings, cluster_status)

    def _make_relay(self, admission: Admission, settings: GatewaySettings, clock: Callable[[], float]) -> Relay:
        return Relay(
            admission=admission,
            upstream=self._upstream,
            journal=self.journal,
            receipts=self.receipts,
            metrics=self.metrics,
            statistics=self._statistics,
            limits=settings.relay,
            spend=self._limiter.spend,
            tracing=self._tracing,
            clock=clock,
        )

    def _make_service(self, catalogue: Catalogue, admission: Admission, settings: GatewaySettings) -> InferenceService:
        return InferenceService(
            catalogue=catalogue,
            admission=admission,
            relay=self._relay,
            sequences=self._sequences,
            statistics=self._statistics,
            limiter=self._limiter,
            admin_timeout_s=settings.admin_timeout_s,
            is_ready=lambda: self._open and self._can_serve(),
        )

    def _make_servers(
        self,
        service: InferenceService,
        settings: GatewaySettings,
        cluster_status: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        """One server a port; none listens before `start`."""
        checks = CheckedCalls(self._access, self.metrics.failed)
        calls = GrpcFrontend(service, self._access, self.metrics, self._budget, settings)
        self._grpc = GrpcServer(calls, HealthService(service.is_ready), checks, settings)
        frontend = HttpFrontend(service, self._access, self.metrics, self.receipts, cluster_status)
        self.http_app = frontend.app(settings.max_message_bytes, settings.connections.body_timeout_s)
        self.http_app.middlewares.extend((self._budget.middleware, traced_requests))
        self.http_app.add_subapp("/v1", OpenAIFrontend(service, self._access, self.metrics).app())
        host, limits, drain_s = settings.host, settings.connections, settings.drain_timeout_s
        tls = None if settings.tls is None else http_context(settings.tls)
        watched = settings.metrics_address  # whoever is on this machine sees as much without it
        metrics = metrics_app(self.metrics.registry, *(() if is_loopback(watched) else (self._access.check_metrics,)))
        self._http_site = HttpSite(self.http_app, host, settings.http_port, limits, tls=tls, drain_s=drain_s)
        self._metrics_site = HttpSite(metrics, watched, settings.metrics_port, limits, tls=tls)

    @property
    def http_port(self) -> int:
        return self._http_site.port

    @property
    def grpc_port(self) -> int:
        return self._grpc.port

    @property
    def metrics_port(self) -> int:
        return self._metrics_site.port

    async def start(self) -> None:
        """Listen on every port. Raises OSError or RuntimeError where one is taken."""
        await self._metrics_site.start()
        await self._http_site.start()
        await self._grpc.start()
        self._reporting = asyncio.get_running_loop().create_task(self._progress.run())
        self._open = True

    async def stop(self) -> None:
        """Not ready at once; running streams may end within the drain timeout, then everything is closed."""
        self._open = False
        await asyncio.gather(self._grpc.stop(), self._http_site.stop())
        if self._reporting is not None:
            self._reporting.cancel()
        self._sequences.close()
        await self._relay.close()
        await self._upstream.close()
        await self._metrics_site.stop()
        await asyncio.to_thread(self._tracing.close)
