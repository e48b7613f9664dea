"""How the demo talks to a person: steps with a bar while they last, tokens as they arrive, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

BAR_WIDTH = 24
TICK_S = 0.1


def heading(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def say(text: str = "", *, newline: bool = True, dim: bool = False) -> None:
    click.secho(text, nl=newline, dim=dim)


@contextmanager
def step(title: str, expected_s: float) -> Iterator[None]:
    """A long step: on a terminal a bar that fills within the expected seconds, elsewhere one line at its end."""
    began_s = time.monotonic()
    done = threading.Event()
    bar = threading.Thread(target=_draw, args=(title, expected_s, began_s, done), daemon=True)
    if sys.stdout.isatty():
        bar.start()
    try:
        yield
    finally:
        done.set()
        if bar.ident is not None:
            bar.join()
        elapsed_s = time.monotonic() - began_s
        click.echo(f"\r\033[K{title}: {elapsed_s:.1f} s" if sys.stdout.isatty() else f"{title}: {elapsed_s:.1f} s")


def _draw(title: str, expected_s: float, began_s: float, done: threading.Event) -> None:
    while not done.wait(TICK_S):
        elapsed_s = time.monotonic() - began_s
        filled = min(BAR_WIDTH - 1, int(BAR_WIDTH * elapsed_s / expected_s))
        bar = "█" * filled + "░" * (BAR_WIDTH - filled)
        click.echo(f"\r\033[K{title} {bar} {elapsed_s:.0f} s", nl=False)
