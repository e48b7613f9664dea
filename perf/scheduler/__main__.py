"""`python -m perf.scheduler live|estimate`: the scheduler's benchmarks, each a subcommand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from perf.scheduler import estimate, live

COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {"estimate": estimate.main, "live": live.main}


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        print(f"python -m perf.scheduler {'|'.join(COMMANDS)} [options]", file=sys.stderr)
        return 2
    return COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
