"""What is counted as Triton's memory for a model, with real processes in its place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_triton.backend.triton_memory import triton_bytes

BALLAST = 50_000_000
# A server that starts a process each for two models and waits; so do they, holding the ballast.
_CHILD = f"import sys; held = b'x' * {BALLAST}; print('ready', flush=True); sys.stdin.read()"
_SERVER = """
import subprocess, sys
child, *folders = sys.argv[1:]
started = [subprocess.Popen([sys.executable, "-c", child, f"{folder}/1/model.py"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE) for folder in folders]
for one in started:
    one.stdout.readline()
print("ready", flush=True)
sys.stdin.read()
for one in started:
    one.stdin.close()
    one.wait()
"""


@pytest.fixture
def pid_file(tmp_path: Path) -> Iterator[Path]:
    folders = [str(tmp_path / name) for name in ("one", "other")]
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, _CHILD, *folders], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        file = tmp_path / "pid"
        file.write_text(f"{server.pid}\n")
        yield file


def test_the_server_and_the_models_own_processes_count(pid_file: Path, tmp_path: Path) -> None:
    alone = triton_bytes(pid_file, [tmp_path / "asleep"])
    assert 0 < alone < BALLAST
    for name in ("one", "other"):
        assert BALLAST < triton_bytes(pid_file, [tmp_path / name]) - alone < 2 * BALLAST


def test_an_ensembles_members_count_together(pid_file: Path, tmp_path: Path) -> None:
    assert triton_bytes(pid_file, [tmp_path / "one", tmp_path / "other"]) > 2 * BALLAST


def test_a_model_whose_name_begins_another_is_not_it(pid_file: Path, tmp_path: Path) -> None:
    assert triton_bytes(pid_file, [tmp_path / "on"]) < BALLAST


def test_a_server_that_does_not_run_has_none(tmp_path: Path) -> None:
    assert triton_bytes(tmp_path / "pid", [tmp_path / "one"]) == 0
