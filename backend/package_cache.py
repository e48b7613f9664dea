"""The cache of what is installed on demand and is no dependency: Triton's wheel, the stub's Pythons, the demo model.

It owns how an entry comes to be whole: one process builds it under a lock, beside its place, and moves it there.
What an entry holds is the caller's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from serverless_triton.backend.errors import PackageUnavailable

CACHE_VARIABLE = "SERVERLESS_TRITON_CACHE"

Report = Callable[[str], None]


def silent(_message: str) -> None:
    """A `Report` for callers that show no progress."""


def cache_directory(environment: Mapping[str, str] | None = None) -> Path:
    """`$SERVERLESS_TRITON_CACHE`, else `serverless-triton` in the user's cache folder; it may not exist yet."""
    environment = os.environ if environment is None else environment
    if chosen := environment.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    home = environment.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "serverless-triton"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the kernel, also when we are killed
        yield


def ensure_entry(entry: Path, build: Callable[[Path], None], *, witness: str) -> Path:
    """Returns `entry`, a directory; where its file `witness` is missing, `build(partial)` makes it first.

    Any number of processes may call this at once: one builds, the others wait for it.
    """
    if (entry / witness).exists():
        return entry
    with _locked(entry.with_name(f"{entry.name}.lock")):
        if not (entry / witness).exists():
            _build(entry, build, witness)
    return entry


def _build(entry: Path, build: Callable[[Path], None], witness: str) -> None:
    partial = entry.with_name(f"{entry.name}.partial")
    for leftover in (partial, entry):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        if not (partial / witness).exists():
            raise PackageUnavailable(f"{entry}: was installed, but has no {witness}")
        partial.rename(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def install_package(requirement: str, target: Path) -> None:
    """Puts a wheel's files into `target`, without its dependencies: their pins must not reach our environment.

    Raises PackageUnavailable.
    """
    _pip("install", "--no-deps", "--only-binary", ":all:", "--target", str(target), requirement)


def install_into(python: Path, *requirements: str) -> None:
    """Installs wheels into the environment of another Python. Raises PackageUnavailable."""
    _pip("--python", str(python), "install", "--only-binary", ":all:", *requirements)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        last_lines = "\n".join(finished.stderr.strip().splitlines()[-3:])
        raise PackageUnavailable(f"`{' '.join(command)}` failed: {last_lines}")
