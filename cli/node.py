"""`serverless-triton node`: one server of a cluster, for deployments that start the parts themselves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from serverless_triton.backend.devices import device_names
from serverless_triton.backend.node import NodeConfig, node_processes
from serverless_triton.backend.node_tls import NodeTLS
from serverless_triton.backend.supervisor import Run
from serverless_triton.backend.triton_install import assemble_backend_directory, find_triton
from serverless_triton.cli.cluster import supervise
from serverless_triton.loader.store_config import PAGES
from serverless_triton.scheduler.gateway.settings import is_loopback

WILDCARDS = ("0.0.0.0", "::", "[::]", "*")
_PORT = click.IntRange(1, 65535)


def _checked(_context: click.Context, _parameter: click.Parameter, devices: str) -> str:
    try:
        device_names(devices)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return devices


def _tls(options: dict[str, Any]) -> NodeTLS | None:
    """Takes its files out of the options: all three of them or none."""
    files = {name: options.pop(f"tls_{name}") for name in ("certificate_file", "key_file", "ca_file")}
    if not any(files.values()):
        return None
    if not all(files.values()):
        raise click.UsageError("give --tls-certificate-file, --tls-key-file and --tls-ca-file together")
    return NodeTLS(**files)


@click.command("node")
@click.option("--name", required=True, help="What the scheduler's configuration calls it.")
@click.option("--model-repository", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where Triton and the agent listen.")
@click.option("--secret-file", type=click.Path(path_type=Path), help="What the scheduler shows, the same file as its.")
@click.option("--scheduler", "schedulers", multiple=True, help="Announce the server to its registry, HOST:PORT.")
@click.option("--announced-host", help="Where the scheduler reaches this machine. [default: --host]")
@click.option("--tls-certificate-file", type=click.Path(path_type=Path), help="Of Triton's and the agent's gRPC.")
@click.option("--tls-key-file", type=click.Path(path_type=Path), help="Its key.")
@click.option("--tls-ca-file", type=click.Path(path_type=Path), help="Who signs the scheduler's certificate.")
@click.option("--http-port", type=_PORT, default=8000, show_default=True, help="Triton's HTTP.")
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True, help="Triton's gRPC.")
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True, help="Triton's metrics.")
@click.option("--agent-port", type=_PORT, default=8003, show_default=True, help="The agent's gRPC.")
@click.option("--devices", default="cpu", show_default=True, callback=_checked, help="Or GPUs: cuda:0,cuda:1.")
@click.option("--device-memory-bytes", type=click.IntRange(1), default=4 << 30, show_default=True, help="Of each.")
@click.option("--dram-bytes", type=click.IntRange(1), help="Weights in memory. [default: half of what is free]")
@click.option(
    "--pages", type=click.Choice(PAGES), default="auto", show_default=True, help="What that memory is made of."
)
@click.option("--prefault/--no-prefault", default=True, show_default=True, help="Take that memory ahead of loads.")
@click.option("--ssd-bytes-per-second", type=click.IntRange(1), help="Throttle reads. [default: not]")
@click.option("--spare-workers", type=click.IntRange(0), default=1, show_default=True, help="Forked ahead.")
@click.option("--logs", type=click.Path(path_type=Path), default=Path("build/logs"), show_default=True)
def command(model_repository: Path, logs: Path, **options: Any) -> None:
    """Run one server: its store, zygote, agent and tritonserver, until Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    announced = options["announced_host"] or options["host"]
    if options["schedulers"] and announced in WILDCARDS:
        raise click.UsageError(f"no scheduler reaches a machine as {announced}; give --announced-host")
    config = NodeConfig(model_repository=model_repository.resolve(), tls=_tls(options), **options)
    if config.secret_file is None and not is_loopback(config.host):
        raise click.UsageError(f"other machines reach {config.host} and could load and run models; give --secret-file")
    installation = find_triton(report=lambda message: click.echo(message, err=True))
    with Run.create() as run:
        backends = assemble_backend_directory(installation, run.directory / "backends")
        supervise(run, node_processes(config, run, installation, backends), logs)
