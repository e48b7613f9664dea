"""Debian's etcd, for tests: the one on PATH, else its package's files in the cache. Nothing needs root.

apt fetches the package and checks its signatures; where this machine's lists do not know it, it reads its own.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from serverless_triton.backend.errors import PackageUnavailable
from serverless_triton.backend.package_cache import cache_directory, ensure_entry

PACKAGE = "etcd-server"
BINARY = "usr/bin/etcd"


def find_etcd() -> Path:
    """Raises PackageUnavailable."""
    on_path = shutil.which("etcd")
    if on_path is not None:
        return Path(on_path)
    return ensure_entry(cache_directory() / PACKAGE, _install, witness=BINARY) / BINARY


def _install(target: Path) -> None:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise PackageUnavailable(f"there is no {program} here to bring {PACKAGE}: put etcd 3.4 or later on PATH")
    if not _try(["apt-get", "download", PACKAGE], target):
        _download_by_own_lists(target)
    _run(["dpkg-deb", "-x", *(str(file) for file in target.glob(f"{PACKAGE}_*.deb")), str(target)], target)


def _download_by_own_lists(target: Path) -> None:
    state, cache = target / "apt-state", target / "apt-cache"
    (state / "lists" / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    options = ("-o", f"Dir::State::lists={state / 'lists'}", "-o", f"Dir::Cache={cache}")
    _run(["apt-get", *options, "update"], target)
    _run(["apt-get", *options, "download", PACKAGE], target)
    for folder in (state, cache):
        shutil.rmtree(folder)


def _try(command: Sequence[str], folder: Path) -> bool:
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackageUnavailable(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}")
