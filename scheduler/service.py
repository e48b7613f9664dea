"""The scheduler as a process: catalogue, state, a reign (`reign.py`) and the gateway, put together."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from serverless_triton.backend.node_secret import SecretUnusable
from serverless_triton.backend.node_tls import CertificateUnusable as NodeCertificateUnusable
from serverless_triton.backend.telemetry import make_provider
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.config import SchedulerConfig, load_config
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.metrics import GatewayMetrics
from serverless_triton.scheduler.gateway.tracing import Tracing
from serverless_triton.scheduler.gateway.upstream import GrpcUpstream
from serverless_triton.scheduler.log_lines import set_up_logging
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.node_links import NodeLinks
from serverless_triton.scheduler.reign import Reign, Surroundings
from serverless_triton.scheduler.rollouts import RolloutMetrics
from serverless_triton.scheduler.runtime import spare_lasting_objects
from serverless_triton.scheduler.state.sqlite import SoleLeadership, SqliteStore
from serverless_triton.scheduler.status import cluster_status

logger = logging.getLogger(__name__)


async def serve(config: SchedulerConfig) -> None:
    """Until SIGTERM or SIGINT.

    Raises OSError or RuntimeError where a port is taken, ConfigError for unusable keys, StateError for an unusable
    file of the state.
    """
    store = await SqliteStore.open(config.state.path)
    try:
        await _serve_alone(config, store)
    finally:
        await store.close()


async def _serve_alone(config: SchedulerConfig, store: SqliteStore) -> None:
    registry, links = CollectorRegistry(), NodeLinks.of(config.secret_file, config.node_tls)
    around = Surroundings(
        config=config,
        catalogue=Catalogue(config.model_repository),
        links=links,
        control_metrics=ControlMetrics(registry),
        rollout_metrics=RolloutMetrics(registry),
        store=store,
    )
    reign = Reign.of(around, await SoleLeadership.begin(store))
    servers = reign.loop.cluster.servers
    gateway = Gateway(
        catalogue=around.catalogue,
        admission=reign.loop,
        settings=config.gateway,
        upstream=GrpcUpstream(links, max_message_bytes=config.gateway.max_message_bytes),
        metrics=GatewayMetrics(registry),
        tracing=Tracing(make_provider("serverless-triton-gateway")),
        cluster_status=lambda: cluster_status(reign.loop),
        can_serve=lambda: any(server.takes_starts for server in servers.values()),
    )
    await reign.begin(around.catalogue)
    try:
        await _run(config, reign, gateway)
    finally:
        await reign.end()


async def _run(config: SchedulerConfig, reign: Reign, gateway: Gateway) -> None:
    stopped, broken = _stop_signal(), asyncio.ensure_future(reign.broken())
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
