"""The scheduler as a process: catalogue, control loop, a watch per server, and the gateway, put together."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from serverless_triton.backend.node_secret import SecretUnusable
from serverless_triton.backend.node_tls import CertificateUnusable as NodeCertificateUnusable
from serverless_triton.backend.telemetry import make_provider
from serverless_triton.scheduler.admission import ServerName
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.cluster import Cluster, ServerState
from serverless_triton.scheduler.config import SchedulerConfig, load_config
from serverless_triton.scheduler.control_limits import ControlLimits
from serverless_triton.scheduler.control_loop import ControlLoop
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.metrics import GatewayMetrics
from serverless_triton.scheduler.gateway.tracing import Tracing
from serverless_triton.scheduler.gateway.upstream import GrpcUpstream
from serverless_triton.scheduler.learned import LearnedModels
from serverless_triton.scheduler.log_lines import set_up_logging
from serverless_triton.scheduler.metrics import ControlMetrics
from serverless_triton.scheduler.model_orders import model_orders
from serverless_triton.scheduler.node_links import NodeLinks
from serverless_triton.scheduler.repository_watch import RepositoryWatch
from serverless_triton.scheduler.rollouts import RolloutMetrics, Rollouts
from serverless_triton.scheduler.runtime import spare_lasting_objects
from serverless_triton.scheduler.server_watch import ServerWatch
from serverless_triton.scheduler.status import cluster_status
from serverless_triton.scheduler.triton_effects import ServerAddresses, TritonEffects

logger = logging.getLogger(__name__)

PARKING_INTERVAL_S = 0.25


async def serve(config: SchedulerConfig) -> None:
    """Until SIGTERM or SIGINT. Raises OSError or RuntimeError where a port is taken, ConfigError for unusable keys."""
    catalogue = Catalogue(config.model_repository)
    links = NodeLinks.of(config.secret_file, config.node_tls)
    cluster = Cluster(
        {ServerName(s.name): ServerState(name=ServerName(s.name), grpc_address=s.triton) for s in config.servers}
    )
    effects = TritonEffects(
        {ServerName(s.name): ServerAddresses(triton=s.triton, agent=s.agent) for s in config.servers},
        lambda model, definition: catalogue.entry(model).config_for(definition),
        time.monotonic,
        links=links,
        load_timeout_s=config.control.load_timeout_s,
        release_timeout_s=config.control.release_timeout_s,
    )
    registry, learned = CollectorRegistry(), LearnedModels()
    loop = ControlLoop(
        cluster=cluster,
        effects=effects,
        order_of=model_orders(catalogue, learned),
        learned=learned,
        clock=time.monotonic,
        metrics=ControlMetrics(registry),
        limits=ControlLimits(
            max_waiting_per_model=config.control.max_waiting_per_model,
            max_failed_starts=config.control.max_failed_starts,
            keep_alive_s=config.control.keep_alive_s,
            max_parked_per_server=config.control.max_parked_per_server,
            max_parked_bytes_per_server=config.control.max_parked_bytes_per_server,
        ),
    )
    rollouts = Rollouts(
        loop=loop,
        metrics=RolloutMetrics(registry),
        timeout_s=config.gateway.admin_timeout_s,
        clock=time.monotonic,
    )
    catalogue.on_change = rollouts.on_change
    gateway = Gateway(
        catalogue=catalogue,
        admission=loop,
        settings=config.gateway,
        upstream=GrpcUpstream(links, max_message_bytes=config.gateway.max_message_bytes),
        metrics=GatewayMetrics(registry),
        tracing=Tracing(make_provider("serverless-triton-gateway")),
        cluster_status=lambda: cluster_status(loop),
        can_serve=lambda: any(server.takes_starts for server in cluster.servers.values()),
    )
    watches = [ServerWatch(loop, loop.cluster.servers[ServerName(s.name)], s.agent, links) for s in config.servers]
    repository = RepositoryWatch(catalogue, after_each=rollouts.check)
    works = [*(watch.run() for watch in watches), repository.run(), _park_overdue(loop)]
    try:
        await _run(config, loop, gateway, effects, works)
    finally:
        await rollouts.close()


async def _run(
    config: SchedulerConfig,
    loop: ControlLoop,
    gateway: Gateway,
    effects: TritonEffects,
    works: list[Coroutine[Any, Any, None]],
) -> None:
    tasks = [asyncio.ensure_future(work) for work in works]
    stopped = _stop_signal()
    await gateway.start()
    spare_lasting_objects()
    logger.info("scheduler_ready http=%d grpc=%d", config.gateway.http_port, config.gateway.grpc_port)
    await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    await gateway.stop()  # streams that end within its patience may still be resumed
    await loop.close()
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await effects.close()


async def _park_overdue(loop: ControlLoop) -> None:
    while True:
        await asyncio.sleep(PARKING_INTERVAL_S)
        loop.park_overdue()


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
