"""Builds the loader's core with sanitizers and runs its C++ tests, and a bounded round of fuzzing, under them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LOADER = Path(__file__).parents[2] / "loader"
CORPUS = Path(__file__).parent / "corpus"
TESTS_WITH_THREADS = ("arena", "bf16_product", "chunk_hasher", "gpu_copy", "reader", "thread_team", "uring")
TESTS_WITH_GPU = ("device_memory", "gpu_copy")

# A build takes a minute or two on an idle machine of two cores.
pytestmark = [
    pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All targets, built with the address and the undefined-behaviour sanitizer."""
    folder = tmp_path_factory.mktemp("sanitized")
    configure(folder, "-fsanitize=address,undefined -fno-sanitize-recover=all")
    build(folder)
    return folder


def test_cpp_tests_and_fuzz_targets_pass_under_address_and_undefined_behaviour_sanitizers(sanitized: Path) -> None:
    # Beside the build, which may lie on a disk where direct reads work; /tmp often is a tmpfs.
    run(["ctest", "--test-dir", str(sanitized), "--output-on-failure", "--parallel", "2"], TMPDIR=str(sanitized))


def test_a_round_of_fuzzing_can_be_repeated_by_its_seed_and_keeps_its_finds(sanitized: Path, tmp_path: Path) -> None:
    target = str(sanitized / "tests" / "fuzz_header")
    finds, again = tmp_path / "finds", tmp_path / "again"
    seed = run([target, str(CORPUS), "2"], FUZZ_FINDS=str(finds)).splitlines()[0].removeprefix("seed ")
    run([target, str(CORPUS), "2"], FUZZ_FINDS=str(again), FUZZ_SEED=seed)
    other = run([target, str(CORPUS), "0"])

    both = {path.name for path in finds.iterdir()} & {path.name for path in again.iterdir()}
    assert both
    assert all((finds / name).read_bytes() == (again / name).read_bytes() for name in both)
    assert not other.startswith(f"seed {seed}\n")
    assert f"{len(list(finds.iterdir()))} files" in run([target, str(finds), "0"])


def test_what_runs_on_several_threads_passes_under_the_thread_sanitizer(tmp_path: Path) -> None:
    configure(tmp_path, "-fsanitize=thread")
    build(tmp_path, TESTS_WITH_THREADS)
    for name in TESTS_WITH_THREADS:
        command = [*without_address_randomization(), str(tmp_path / "tests" / f"{name}_test")]
        run(command, TMPDIR=str(tmp_path), TSAN_OPTIONS="halt_on_error=1")


@pytest.mark.gpu
def test_what_uses_a_gpu_passes_on_the_card(tmp_path: Path, real_cuda: str) -> None:
    configure(tmp_path, "")
    build(tmp_path, TESTS_WITH_GPU)
    for name in TESTS_WITH_GPU:
        run([str(tmp_path / "tests" / f"{name}_test")], SERVERLESS_TRITON_CUDA_DRIVER=real_cuda)


def without_address_randomization() -> list[str]:
    """Older thread sanitizers need it, and a container may forbid it."""
    prefix = ["setarch", "--addr-no-randomize"]
    is_allowed = shutil.which("setarch") and subprocess.run([*prefix, "true"], check=False).returncode == 0
    return prefix if is_allowed else []


def configure(build: Path, sanitizers: str) -> None:
    command = ["cmake", "-S", str(LOADER), "-B", str(build), "-DLOADER_BUILD_EXTENSION=OFF", "-DLOADER_BUILD_TESTS=ON"]
    flags = f"-DCMAKE_CXX_FLAGS={sanitizers} -O1 -g"
    run([*command, "-DLOADER_WARNINGS_AS_ERRORS=ON", flags, "-DCMAKE_BUILD_TYPE=None"])


def build(folder: Path, modules: tuple[str, ...] = ()) -> None:
    """The tests of these modules, or everything."""
    targets = [f"{module}_test" for module in modules] or ["all"]
    run(["cmake", "--build", str(folder), "--parallel", "2", "--target", *targets])


def run(command: list[str], **environment: str) -> str:
    """What it prints."""
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=900, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return done.stdout
