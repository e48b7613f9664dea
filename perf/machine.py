"""Where a run took place: hardware, versions and commit, as they stand in its file. Nothing that names the machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from serverless_triton.backend.triton_install import find_triton

ROOT = Path(__file__).parent.parent
# Recording one benchmark must not keep the next from being recorded.
_NOT_CODE = ":(exclude)perf/results"
_PACKAGES = ("serverless-triton", "torch", "transformers", "tritonclient", "numpy", "grpcio")


def hardware() -> dict[str, str | int]:
    """`class` is what runs must share to be compared."""
    cpu, cores, gpu = _cpu_model(), len(os.sched_getaffinity(0)), _gpu()
    return {
        "cpu": cpu,
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": gpu,
        "class": f"{cores} cores of {cpu}, {'no GPU' if gpu == 'none' else gpu}",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpu() -> str:
    if shutil.which("nvidia-smi") is None:
        return "none"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")
    found = [name.strip() for name in names if name.strip()]
    return f"{len(found)} × {found[0]}" if found else "none"


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Of Python, Linux, Triton and what we build on; of `packages` those that are installed."""
    triton = find_triton().version
    installed = {name: version for name in (*_PACKAGES, *packages) if (version := version_of(name))}
    return {
        "python": platform.python_version(),
        "linux": platform.release().partition("-")[0],
        "triton": "unknown" if triton is None else "{}.{}".format(*triton),
        **installed,
    }


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit that is checked out, with "-dirty" where files differ from it; "unknown" outside a git clone."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return f"{head}-dirty" if _git("status", "--porcelain", "--", ".", _NOT_CODE) else head


def _git(*arguments: str) -> str | None:
    if shutil.which("git") is None:
        return None
    finished = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return None if finished.returncode else finished.stdout.strip()


def busy_share(during_s: float) -> float:
    """How much of all cores' time was not idle while this waited: neighbours, and rivals that should be at rest."""
    before = _cpu_ticks()
    time.sleep(during_s)
    idle, total = (after - start for after, start in zip(_cpu_ticks(), before, strict=True))
    return 1.0 - idle / total if total else 0.0


def _cpu_ticks() -> tuple[int, int]:
    """(idle, all) of all cores since boot."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
