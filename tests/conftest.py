"""What tests of every kind share."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import hypothesis
import pytest

from serverless_triton.cli.demo_model import ensure_demo_model

# Before anything imports torch: idle OpenMP threads that spin starve the processes under test on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No example is too slow to be right: the machine may have other things to do.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory, converted once into the cache."""
    return ensure_demo_model()


CUDA_DRIVER = "SERVERLESS_TRITON_CUDA_DRIVER"


@pytest.fixture(scope="session")
def emulated_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CUDA driver in host memory, for machines that have no GPU."""
    build = tmp_path_factory.mktemp("emulated_cuda")
    loader = Path(__file__).parents[1] / "loader"
    options = ["-DLOADER_BUILD_EXTENSION=OFF", "-DLOADER_BUILD_TESTS=ON", "-DCMAKE_BUILD_TYPE=Release"]
    for command in (
        ["cmake", "-S", str(loader), "-B", str(build), *options],
        ["cmake", "--build", str(build), "--target", "emulated_cuda"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return next(build.rglob("libemulated_cuda.so"))


@pytest.fixture(scope="session")
def real_cuda() -> str:
    """NVIDIA's driver; without one the test is left out."""
    library = "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError as error:
        pytest.skip(f"there is no CUDA driver on this machine: {error}")
    return library


@pytest.fixture(scope="session", params=["emulated", pytest.param("real", marks=pytest.mark.gpu)])
def cuda_driver(request: pytest.FixtureRequest) -> str:
    """The driver that this process and those it starts use: the same tests run on both, and `-m gpu` picks the card."""
    library = str(request.getfixturevalue(f"{request.param}_cuda"))
    if os.environ.setdefault(CUDA_DRIVER, library) != library:
        pytest.skip("a process opens one driver; run the tests of the card in a run of their own, with -m gpu")
    return library
