"""`serverless-triton setup`: installs into the cache what is fetched on demand, so that nothing waits for it later."""

from __future__ import annotations

import json
from pathlib import Path

import click

from serverless_triton.backend.triton_install import find_triton
from serverless_triton.cli.demo_model import ensure_demo_model


def _progress(message: str) -> None:
    click.echo(f"{message} ...", err=True)


def _print(as_json: bool, **figures: str | Path | None) -> None:
    if as_json:
        click.echo(json.dumps({name: value if value is None else str(value) for name, value in figures.items()}))
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in figures.items()))


@click.group("setup")
def command() -> None:
    """Install what is fetched on demand, into $SERVERLESS_TRITON_CACHE (default ~/.cache/serverless-triton)."""


@command.command("triton")
@click.option("--json", "as_json", is_flag=True)
def triton(as_json: bool) -> None:
    """Find a Triton server on this machine, or install the one inside the wheel nvidia-pytriton."""
    found = find_triton(report=_progress)
    version = "{}.{}".format(*found.version) if found.version else None
    _print(as_json, server=found.server, version=version, stub_environment=found.environment)


@command.command("demo-model")
@click.option("--json", "as_json", is_flag=True)
def demo_model(as_json: bool) -> None:
    """Make SmolLM2-135M-Instruct as an ordinary Hugging Face directory, once."""
    _print(as_json, checkpoint=ensure_demo_model(report=_progress))
