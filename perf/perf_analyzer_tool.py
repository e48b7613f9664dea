"""Triton's own load generator, perf_analyzer: where it is, how it is run, what it said. Nothing here knows our server.

One on PATH is used; else one from a wheel: perf-analyzer's where the C library is new enough for it, or the one inside
an older tritonclient, whose libraries come from Triton's wheel.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from perf.harness import BenchmarkFailed
from perf.workloads import Request
from serverless_triton.backend.package_cache import Report, cache_directory, ensure_entry, install_package, silent
from serverless_triton.backend.triton_install import WHEEL as TRITON_WHEEL

NEW_WHEEL, NEW_WHEEL_GLIBC = "perf-analyzer==2.60.0", (2, 38)
OLD_WHEEL = "tritonclient==2.51.0"
# Names that the old one asks for, and how they begin among the libraries of Triton's wheel, where they have a hash.
_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
_TRITON_SERVER = "pytriton/tritonserver/bin/tritonserver"
TIMEOUT_S = 180.0
_COMPLAINT = re.compile(r"error|fail|exception|invalid|unable|cannot", re.IGNORECASE)
_COUNT = re.compile(r"^\s*Request count: (\d+)", re.MULTILINE)
_REMEMBERED_LINES = 12


class AnalyzerFailed(BenchmarkFailed):
    """perf_analyzer is not to be had, or it reported an error; the message has its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerfAnalyzer:
    """A perf_analyzer that can be run; `libraries` is a folder of what the system has not got."""

    binary: Path
    libraries: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """What one invocation measured, request by request in order of sending."""

    first_response_s: tuple[float, ...]
    last_response_s: tuple[float, ...]
    responses: tuple[int, ...]
    duration_s: float  # from the first request sent to the last response


def find_perf_analyzer(cache: Path | None = None, report: Report = silent) -> PerfAnalyzer:
    """Raises AnalyzerFailed, or PackageUnavailable where the wheel could not be installed."""
    cache = cache or cache_directory()
    candidates = (_on_path, lambda: _from_new_wheel(cache, report), lambda: _from_old_wheel(cache, report))
    for candidate in candidates:
        found = candidate()
        if found is not None and _runs(found):
            return found
    raise AnalyzerFailed("no perf_analyzer runs here; install one from Triton's SDK and put it on PATH")


def _on_path() -> PerfAnalyzer | None:
    found = shutil.which("perf_analyzer")
    return PerfAnalyzer(binary=Path(found)) if found else None


def _from_new_wheel(cache: Path, report: Report) -> PerfAnalyzer | None:
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(int(part) for part in version.split(".")) < NEW_WHEEL_GLIBC:
        return None
    return PerfAnalyzer(binary=_installed(cache, NEW_WHEEL, "perf_analyzer/bin/perf_analyzer", report))


def _from_old_wheel(cache: Path, report: Report) -> PerfAnalyzer:
    binary = _installed(cache, OLD_WHEEL, "bin/perf_analyzer", report)
    triton = cache / TRITON_WHEEL.replace("==", "-")
    _installed(cache, TRITON_WHEEL, _TRITON_SERVER, report)

    def link(target: Path) -> None:
        for name, pattern in _LIBRARIES.items():
            (target / name).symlink_to(next((triton / "nvidia_pytriton.libs").glob(pattern)))

    libraries = ensure_entry(cache / "perf-analyzer-libraries", link, witness=next(iter(_LIBRARIES)))
    return PerfAnalyzer(binary=binary, libraries=libraries)


def _installed(cache: Path, wheel: str, witness: str, report: Report) -> Path:
    def install(target: Path) -> None:
        report(f"installing {wheel}")
        install_package(wheel, target)
        (target / witness).chmod(0o755)

    return ensure_entry(cache / wheel.replace("==", "-"), install, witness=witness) / witness


def _runs(analyzer: PerfAnalyzer) -> bool:
    # tritonclient[all] may bring a placeholder of the same name.
    try:
        finished = _execute(analyzer, ["--version"], timeout_s=10.0)
        return "Perf Analyzer Version" in finished.stdout + finished.stderr
    except (OSError, subprocess.TimeoutExpired):
        return False


def analyze(
    analyzer: PerfAnalyzer,
    address: str,
    model: str,
    requests: Sequence[Request],
    folder: Path,
    *,
    concurrency: int = 1,
    rate_per_s: int | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Analysis:
    """Streams the requests over gRPC, and returns when all are answered: `concurrency` at a time, or `rate_per_s` of
    them begun each second, however long they take; their arrival times play no part. `folder` gets what was sent and
    measured. Raises AnalyzerFailed.
    """
    data, profile = folder / f"{model}.input.json", folder / f"{model}.profile.json"
    data.write_text(json.dumps(input_data(requests)))
    profile.unlink(missing_ok=True)
    command = ["-m", model, "-u", address, "-i", "grpc", "--streaming", "--input-data", str(data)]
    pace = ("--concurrency-range", concurrency) if rate_per_s is None else ("--request-rate-range", rate_per_s)
    command += [pace[0], str(pace[1]), "--request-count", str(len(requests))]
    command += ["--profile-export-file", str(profile)]
    for name, value in headers.items():
        command += ["-H", f"{name}:{value}"]
    try:
        finished = _execute(analyzer, command, timeout_s=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise AnalyzerFailed(f"perf_analyzer did not finish {model} within {TIMEOUT_S:.0f} s") from error
    check_output(finished.returncode, finished.stdout + finished.stderr, len(requests))
    return parse_profile(json.loads(profile.read_text()))


def _execute(analyzer: PerfAnalyzer, arguments: Iterable[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if analyzer.libraries:
        others = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = f"{analyzer.libraries}:{others}" if others else str(analyzer.libraries)
    command = [str(analyzer.binary), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)


def input_data(requests: Iterable[Request]) -> dict[str, Any]:
    """perf_analyzer's --input-data: the tensors of each request, as vllm_backend names them."""
    return {
        "data": [
            {
                "text_input": [request.prompt],
                "stream": [True],
                "sampling_parameters": [json.dumps({"max_tokens": request.output_tokens, "ignore_eos": True})],
            }
            for request in requests
        ]
    }


def check_output(status: int, text: str, requests: int) -> None:
    """Raises AnalyzerFailed for an exit status, a complaint or a request count that says something went wrong."""
    complaints = [line.strip() for line in text.splitlines() if _COMPLAINT.search(line)]
    if status or complaints:
        said = complaints or text.strip().splitlines()
        raise AnalyzerFailed(f"perf_analyzer ended with {status}: {' | '.join(said[-_REMEMBERED_LINES:])}")
    counted = sum(int(count) for count in _COUNT.findall(text))
    if counted < requests:
        raise AnalyzerFailed(f"perf_analyzer counted {counted} answered requests of {requests}")


def parse_profile(profile: dict[str, Any]) -> Analysis:
    """From --profile-export-file, whose times are nanoseconds. Raises AnalyzerFailed for a request without response."""
    requests = [request for experiment in profile["experiments"] for request in experiment["requests"]]
    requests.sort(key=lambda request: request["timestamp"])
    if not requests or not all(request["response_timestamps"] for request in requests):
        raise AnalyzerFailed("a request in perf_analyzer's profile has no response")
    last = max(request["response_timestamps"][-1] for request in requests)
    return Analysis(
        first_response_s=tuple((r["response_timestamps"][0] - r["timestamp"]) / 1e9 for r in requests),
        last_response_s=tuple((r["response_timestamps"][-1] - r["timestamp"]) / 1e9 for r in requests),
        responses=tuple(len(r["response_timestamps"]) for r in requests),
        duration_s=(last - requests[0]["timestamp"]) / 1e9,
    )
