"""`serverless-triton scheduler`: the scheduler and its gateway alone, for servers that run elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command("scheduler")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True, help="YAML.")
def command(config: Path) -> None:
    """Run the scheduler and its gateway until Ctrl-C."""
    # In the place of this process, so that signals and the exit status are its own.
    os.execv(sys.executable, [sys.executable, "-m", "serverless_triton.scheduler", "--config", str(config)])
