"""`serverless-triton up`: a whole cluster on this machine until Ctrl-C."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from serverless_triton.cli.cluster import load_cluster_config, run_cluster

DEFAULT_LOGS = Path("build/logs")


@click.command()
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A cluster as YAML.")
@click.option("--servers", type=click.IntRange(1), help="How many servers. [default: 2]")
@click.option("--model-repository", type=click.Path(path_type=Path), help="Default: one with the demo model.")
@click.option("--host", help="Where the gateway listens. [default: 127.0.0.1]")
@click.option("--keys-file", type=click.Path(path_type=Path), help="API keys, as docs/gateway.md describes them.")
@click.option("--allow-anonymous", is_flag=True, default=None, help="Other machines may do everything without a key.")
@click.option("--http-port", type=click.IntRange(1, 65535), help="[default: 8000]")
@click.option("--grpc-port", type=click.IntRange(1, 65535), help="[default: 8001]")
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="[default: 8002]")
@click.option("--device-memory-bytes", type=click.IntRange(1), help="Per server, for KV caches.")
@click.option(
    "--dram-bytes", type=click.IntRange(1), help="Per server, for weights. [default: half of what is free, shared]"
)
@click.option("--ssd-bytes-per-second", type=click.IntRange(1), help="Throttle each server's reads.")
@click.option("--logs", type=click.Path(path_type=Path), default=DEFAULT_LOGS, show_default=True)
def command(config: Path | None, logs: Path, **options: Any) -> None:
    """Run servers and the gateway on this machine until Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    overrides = _overrides(options)
    if config is None and "model_repository" not in overrides:
        overrides["model_repository"] = _demo_repository()
    cluster = load_cluster_config(config, overrides)
    gateway = cluster.gateway
    click.echo(
        f"HTTP {gateway.host}:{gateway.http_port}  gRPC {gateway.host}:{gateway.grpc_port}  logs {logs}", err=True
    )
    run_cluster(cluster, logs, lambda message: click.echo(message, err=True))


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value is not None}
    groups = {
        "gateway": ("host", "keys_file", "allow_anonymous", "http_port", "grpc_port", "metrics_port"),
        "node": ("device_memory_bytes", "dram_bytes", "ssd_bytes_per_second"),
    }
    overrides: dict[str, Any] = {name: given[name] for name in ("servers", "model_repository") if name in given}
    for group, names in groups.items():
        if found := {name: given[name] for name in names if name in given}:
            overrides[group] = found
    return overrides


def _demo_repository() -> Path:
    from serverless_triton.cli.demo_model import ensure_demo_repository

    return ensure_demo_repository(report=lambda message: click.echo(message, err=True))
