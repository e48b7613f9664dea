"""The wheel as a user gets it: built, installed beside the dependencies, every module imported.

An editable install sees files that the wheel may lack.
"""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("backend", "cli", "loader", "scheduler")
# Triton imports these inside its stub, where triton_python_backend_utils is.
ONLY_IN_TRITON = {"serverless_triton.backend.model", "serverless_triton.cli.stock_model.model"}

IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    place = importlib.import_module(name).__file__
    assert place.startswith(sys.prefix), f"{name} came from {place}"
print(len(sys.argv) - 1)
"""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Not the build folder of the editable install: its cache would hide what a fresh build lacks.
    build_folder = f"--config-settings=build-dir={folder / 'build'}"
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(*pip, build_folder, ROOT)
    return next(folder.glob("serverless_triton-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, and this one's packages behind it."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    site_packages = next((environment / "lib").glob("python*/site-packages"))
    # As plain path entries, so that the editable install's import hook in there does not run.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def modules() -> list[str]:
    paths = [path.relative_to(ROOT) for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")]
    names = {".".join(("serverless_triton", *path.with_suffix("").parts)).removesuffix(".__init__") for path in paths}
    return sorted(name for name in names - ONLY_IN_TRITON if not name.endswith(".__main__"))


def test_every_module_is_in_the_wheel_and_imports(python: Path):
    finished = run(python, "-I", "-c", IMPORT_ALL, *modules())
    assert int(finished.stdout.split()[-1]) == len(modules())


def test_the_wheel_has_what_is_not_imported_and_nothing_that_is_not_ours(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"serverless_triton/backend/model.py", "serverless_triton/scheduler/gateway/openapi.yaml"} <= set(names)
    assert any(name.startswith("serverless_triton/loader/_core.") and name.endswith(".so") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"serverless_triton"}
    assert not [name for name in names if "csrc" in name or "CMake" in name or name.endswith((".proto", ".a"))]


def test_the_command_is_installed(python: Path):
    finished = run(python.parent / "serverless-triton", "--help")
    assert "Serverless LLM inference" in finished.stdout
