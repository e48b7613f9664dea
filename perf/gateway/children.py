"""The benchmark's processes: clients that are waited for, and servers that run as long as a context."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from perf import machine
from perf.gateway.listener import Task
from perf.harness import BenchmarkFailed
from serverless_triton.backend.processes import die_with_parent

LISTEN_TIMEOUT_S = 180.0
END_TIMEOUT_S = 10.0


def run_listener(task: Task) -> Mapping[str, float]:
    """The figures of its outcome. Raises BenchmarkFailed."""
    command = [sys.executable, "-m", "perf.gateway.listener"]
    try:
        finished = subprocess.run(
            command,
            input=task.to_json(),  # a secret among its headers is on no command line
            cwd=machine.ROOT,
            capture_output=True,
            text=True,
            timeout=LISTEN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkFailed(f"{task.model} did not stream to its end within {LISTEN_TIMEOUT_S:.0f} s") from error
    if finished.returncode:
        last_lines = "\n".join(finished.stderr.strip().splitlines()[-5:])
        raise BenchmarkFailed(f"clients of {task.model} failed ({finished.returncode}): {last_lines}")
    figures: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A server that was started, and says where it listens."""

    pid: int
    address: str


@contextmanager
def child(module: str, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})) -> Iterator[Child]:
    """`python -m MODULE ARGUMENTS`, where our environment lacks it with this one, until the context ends.

    Raises BenchmarkFailed where it does not start.
    """
    parent = os.getpid()
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=machine.ROOT,
        env={**environment, **os.environ},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: die_with_parent(parent),
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        try:
            if not port:
                raise BenchmarkFailed(f"{module} ended with {process.wait(END_TIMEOUT_S)}")
            yield Child(pid=process.pid, address=f"127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait(END_TIMEOUT_S)
