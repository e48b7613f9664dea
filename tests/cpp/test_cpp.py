"""Builds the loader's core with the address and undefined-behaviour sanitizers and runs its C++ tests."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LOADER = Path(__file__).parents[2] / "loader"
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all -O1 -g"


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cpp_tests_pass_under_sanitizers(tmp_path: Path) -> None:
    configure = ["cmake", "-S", str(LOADER), "-B", str(tmp_path), "-DLOADER_BUILD_EXTENSION=OFF"]
    options = ["-DLOADER_BUILD_TESTS=ON", "-DLOADER_WARNINGS_AS_ERRORS=ON", f"-DCMAKE_CXX_FLAGS={SANITIZERS}"]
    run([*configure, *options, "-DCMAKE_BUILD_TYPE=None"])
    run(["cmake", "--build", str(tmp_path), "--parallel", "2"])
    # Beside the build, which may lie on a disk where direct reads work; /tmp often is a tmpfs.
    run(["ctest", "--test-dir", str(tmp_path), "--output-on-failure"], TMPDIR=str(tmp_path))


def run(command: list[str], **environment: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=280, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
