"""The scheduler as a process: catalogue, state, a reign (`reign.py`) and the gateway, put together."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from serverless_triton.backend.node_secret import NodeSecret, SecretUnusable
from serverless_triton.backend.node_tls import CertificateUnusable as NodeCertificateUnusable
from serverless_triton.backend.telemetry import make_provider
from serverless_triton.scheduler.admission import Admission
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.config import SchedulerConfig, load_config
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.metrics import GatewayMetrics
from serverless_triton.scheduler.gateway.tracing import Tracing
from serverless_triton.scheduler.gateway.upstream import GrpcUpstream
from serverless_triton.scheduler.leader_service import LeaderService
from serverless_triton.scheduler.log_lines import set_up_logging
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.node_links import NodeLinks
from serverless_triton.scheduler.reign import Reign, Surroundings
from serverless_triton.scheduler.rollouts import RolloutMetrics
from serverless_triton.scheduler.runtime import spare_lasting_objects
from serverless_triton.scheduler.shared_admission import SharedAdmission
from serverless_triton.scheduler.state.etcd import EtcdStore
from serverless_triton.scheduler.state.etcd_election import EtcdElection
from serverless_triton.scheduler.state.etcd_link import EtcdLink
from serverless_triton.scheduler.state.protocol import StateStore
from serverless_triton.scheduler.state.sqlite import SoleLeadership, SqliteStore
from serverless_triton.scheduler.status import cluster_status
from serverless_triton.scheduler.succession import Succession

logger = logging.getLogger(__name__)


async def serve(config: SchedulerConfig) -> None:
    """Until SIGTERM or SIGINT.

    Raises OSError or RuntimeError where a port is taken, ConfigError for unusable keys, StateError for an unusable
    file of the state.
    """
    if config.state.kind == "etcd":
        await _serve_shared(config)
        return
    store = await SqliteStore.open(config.state.path)
    try:
        await _serve_alone(config, store)
    finally:
        await store.close()


async def _serve_alone(config: SchedulerConfig, store: SqliteStore) -> None:
    registry = CollectorRegistry()
    around = _surroundings(config, store, registry)
    reign = Reign.of(around, await SoleLeadership.begin(store))
    servers = reign.loop.cluster.servers

    async def status() -> dict[str, Any]:
        return cluster_status(reign.loop)

    def can_serve() -> bool:
        return any(server.takes_starts for server in servers.values())

    gateway = _gateway(around, registry, reign.loop, status, can_serve)
    await reign.begin(around.catalogue)
    try:
        await _run(config, gateway, reign.broken())
    finally:
        await reign.end()


async def _serve_shared(config: SchedulerConfig) -> None:
    """One of several schedulers: its gateway serves, whoever leads."""
    state, registry = config.state, CollectorRegistry()
    assert state.address is not None
    link = EtcdLink(state.endpoints, state.tls)
    around = _surroundings(config, EtcdStore(link, state.prefix), registry)
    election = EtcdElection(link=link, prefix=state.prefix, address=state.address, lease_s=state.lease_s)
    admission = SharedAdmission(election.name)
    service = LeaderService(secret=None if config.secret_file is None else NodeSecret.read(config.secret_file))
    succession = Succession(around=around, election=election, admission=admission, service=service)
    gateway = _gateway(around, registry, admission, admission.status, admission.can_serve)
    server = await service.listen(state.address, config.node_tls)
    works = [asyncio.ensure_future(work) for work in (election.run(), succession.run())]
    try:
        await _run(config, gateway, _first_end(works))
    finally:
        await _cancel(works[1:])
        await succession.end()
        await _cancel(works[:1])  # resigns: the next leader comes at once
        await server.stop(grace=None)
        await link.close()


def _surroundings(config: SchedulerConfig, store: StateStore, registry: CollectorRegistry) -> Surroundings:
    return Surroundings(
        config=config,
        catalogue=Catalogue(config.model_repository),
        links=NodeLinks.of(config.secret_file, config.node_tls),
        control_metrics=ControlMetrics(registry),
        rollout_metrics=RolloutMetrics(registry),
        store=store,
    )


def _gateway(
    around: Surroundings,
    registry: CollectorRegistry,
    admission: Admission,
    status: Callable[[], Awaitable[dict[str, Any]]],
    can_serve: Callable[[], bool],
) -> Gateway:
    settings = around.config.gateway
    return Gateway(
        catalogue=around.catalogue,
        admission=admission,
        settings=settings,
        upstream=GrpcUpstream(around.links, max_message_bytes=settings.max_message_bytes),
        metrics=GatewayMetrics(registry),
        tracing=Tracing(make_provider("serverless-triton-gateway")),
        cluster_status=status,
        can_serve=can_serve,
    )


async def _first_end(works: Sequence[asyncio.Task[None]]) -> None:
    done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
    for work in done:
        work.result()


async def _cancel(works: Sequence[asyncio.Task[None]]) -> None:
    for work in works:
        work.cancel()
    await asyncio.gather(*works, return_exceptions=True)


async def _run(config: SchedulerConfig, gateway: Gateway, breaks: Coroutine[Any, Any, None]) -> None:
    """Until a signal, or until `breaks` returns, which nothing should make it do."""
    stopped, broken = _stop_signal(), asyncio.ensure_future(breaks)
    await gateway.start()
    spare_lasting_objects()
    logger.info("scheduler_ready http=%d grpc=%d", config.gateway.http_port, config.gateway.grpc_port)
    await asyncio.wait({stopped, broken}, return_when=asyncio.FIRST_COMPLETED)
    await gateway.stop()  # streams that end within its patience may still be resumed
    broken.cancel()


def _stop_signal() -> asyncio.Task[None]:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return loop.create_task(_until(stopped))


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the scheduler and its gateway.")
    parser.add_argument("--config", type=Path, required=True)
    options: Any = parser.parse_args(arguments)
    try:
        config = load_config(options.config)
        set_up_logging(config.logs)
        asyncio.run(serve(config))
    except (SchedulerError, SecretUnusable, NodeCertificateUnusable) as error:
        print(f"serverless-triton scheduler: {error}", file=sys.stderr)  # noqa: T201 - a command's answer
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
