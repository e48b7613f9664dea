"""The `serverless-triton` command: finds a command's module, and prints typed errors as one clear line.

Commands are imported when they are called, because some of them import torch. A new one is a line in `_COMMANDS` and a
module of this package with a click command named `command`.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

import click

# Command → what it does; its module has the same name.
_COMMANDS = {
    "add": "Put a model into a Triton model repository.",
    "demo": "Wake, swap and move models on two real Triton servers.",
    "node": "Run one server of a cluster until Ctrl-C.",
    "scheduler": "Run the scheduler and its gateway until Ctrl-C.",
    "setup": "Install what is fetched on demand: Triton, the demo model.",
    "status": "Show servers, tiers, replicas, queues and what was learned of starts.",
    "store": "Keep checkpoints in memory; repack, hash and verify them.",
    "up": "Run servers and the gateway on this machine until Ctrl-C.",
}


class LazyGroup(click.Group):
    """A click group whose commands are modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(f"serverless_triton.cli.{cmd_name}").command
        assert isinstance(command, click.Command), cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click's own would import every module to read its help.
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="serverless-triton")
def cli() -> None:
    """Serverless LLM inference on NVIDIA Triton Inference Server."""


def main() -> None:
    """The entry point: exits 0 on success, 1 on a typed error, 2 on wrong usage, 130 on Ctrl-C."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if not isinstance(error, _typed_errors()):
            raise
        click.echo(_failure(error, as_json="--json" in sys.argv), err=True)
        sys.exit(1)


def _failure(error: Exception, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"error": type(error).__name__, "message": str(error)})
    return f"serverless-triton: {error}"


def _typed_errors() -> tuple[type[BaseException], ...]:
    """The roots of our exception trees, of those packages that have been imported: no other can have raised."""
    roots = {"backend": "BackendError", "loader": "LoaderError", "scheduler": "SchedulerError"}
    modules = {name: sys.modules.get(f"serverless_triton.{name}.errors") for name in roots}
    return tuple(getattr(module, roots[name]) for name, module in modules.items() if module)
