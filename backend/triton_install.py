"""Where Triton is, and the backend directory and environment that a server of ours is started with.

A tritonserver of this machine is used as it is; without one, the server inside the wheel nvidia-pytriton is. Starting
and supervising servers is `triton_server`'s.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serverless_triton.backend import stub_environment
from serverless_triton.backend.errors import TritonNotFound
from serverless_triton.backend.package_cache import Report, cache_directory, ensure_entry, install_package, silent
from serverless_triton.backend.stub_environment import Interpreter, require_numpy_1

WHEEL = "nvidia-pytriton==0.7.0"
_WHEEL_TRITON_VERSION = (2, 51)
_LAST_VERSION_WITHOUT_NUMPY_2 = (2, 51)
_SHIPPED_HOME = Path("/opt/tritonserver")
_PYTHON_BACKEND_LIBRARY = "libtriton_python.so"
_STUB = "triton_python_backend_stub"

# What model.py imports of ours; it stands beside a copy of these, so that the stub's Python needs no install of ours.
STUB_MODULES = ("answers", "channel", "client_json", "messages", "outbox", "stub_metrics", "triton_tensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonInstallation:
    """A server that can be started; `interpreter` and `environment` are None where Triton ships the stub's own."""

    server: Path
    version: tuple[int, int] | None
    python_backend: Path
    stub: Path | None
    interpreter: Interpreter | None
    environment: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendDirectory:
    """What `--backend-directory` gets: Triton's Python backend and ours, side by side."""

    path: Path


def find_triton(cache: Path | None = None, report: Report = silent) -> TritonInstallation:
    """Raises TritonNotFound, StubUnusable, or PackageUnavailable where the wheel could not be installed."""
    return _shipped_triton() or _wheel_triton(cache or cache_directory(), report)


def _shipped_triton() -> TritonInstallation | None:
    on_path = shutil.which("tritonserver")
    homes = [Path(on_path).resolve().parent.parent] if on_path else []
    for home in [*homes, _SHIPPED_HOME]:
        server, python_backend = home / "bin" / "tritonserver", home / "backends" / "python"
        if server.exists() and (python_backend / _PYTHON_BACKEND_LIBRARY).exists():
            return TritonInstallation(
                server=server,
                version=_shipped_version(home),
                python_backend=python_backend,
                stub=None,
                interpreter=None,
                environment=None,
            )
    return None


def _shipped_version(home: Path) -> tuple[int, int] | None:
    file = home / "TRITON_VERSION"
    text = file.read_text() if file.exists() else os.environ.get("TRITON_SERVER_VERSION", "")
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _wheel_triton(cache: Path, report: Report) -> TritonInstallation:
    def install(target: Path) -> None:
        report(f"installing {WHEEL}, which has a Triton server in it")
        install_package(WHEEL, target)

    server = Path("pytriton") / "tritonserver" / "bin" / "tritonserver"
    home = (ensure_entry(cache / WHEEL.replace("==", "-"), install, witness=str(server)) / server).parent.parent
    interpreter = stub_environment.choose_interpreter()
    stub = home / "python_backend_stubs" / "{}.{}".format(*interpreter.version) / _STUB
    if not stub.exists():
        raise TritonNotFound(f"{WHEEL} has no stub for Python {interpreter.version}: {stub} is missing")
    return TritonInstallation(
        server=home / "bin" / "tritonserver",
        version=_WHEEL_TRITON_VERSION,
        python_backend=home / "backends" / "python",
        stub=stub,
        interpreter=interpreter,
        environment=stub_environment.thin_environment(cache, interpreter, report),
    )


def stock_environment(
    installation: TritonInstallation, cache: Path | None = None, report: Report = silent
) -> Path | None:
    """A stub environment with torch and transformers, for the usual Triton Python model; None where Triton has its own.

    Raises StubUnusable, PackageUnavailable.
    """
    if installation.interpreter is None:
        return None
    return stub_environment.stock_environment(cache or cache_directory(), installation.interpreter, report)


def assemble_backend_directory(installation: TritonInstallation, target: Path) -> BackendDirectory:
    """Makes `target` anew: `python/` is Triton's Python backend, `serverless/` ours with all that it imports."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if installation.stub is None:
        (target / "python").symlink_to(installation.python_backend)
    else:
        shutil.copytree(installation.python_backend, target / "python", ignore=shutil.ignore_patterns("__pycache__"))
        # A link, not a copy: the stub finds its libraries relative to where it really is.
        (target / "python" / _STUB).symlink_to(installation.stub)
    _copy_our_backend(target / "serverless")
    return BackendDirectory(path=target)


def _copy_our_backend(target: Path) -> None:
    ours = Path(__file__).parent
    package = target / "serverless_triton" / "backend"
    package.mkdir(parents=True)
    shutil.copyfile(ours / "model.py", target / "model.py")
    for module in ("__init__", *STUB_MODULES):
        shutil.copyfile(ours / f"{module}.py", package / f"{module}.py")


def server_environment(
    installation: TritonInstallation,
    environment: Path | None = None,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The variables to start the server with: `base` (ours), changed so that its stubs run in `environment`.

    Raises StubUnusable where tensors would be corrupted there (`environment` defaults to the installation's own).
    """
    variables = dict(os.environ if base is None else base)
    # Either could bring another numpy than the environment's.
    for name in ("PYTHONHOME", "PYTHONPATH"):
        variables.pop(name, None)
    environment = environment or installation.environment
    if environment:
        # Triton starts its stubs through bash and hangs where PATH has none.
        variables["PATH"] = _prepended(environment / "bin", variables.get("PATH") or os.defpath)
        if (library_folder := environment / stub_environment.LIBRARY_FOLDER).exists():
            variables["LD_LIBRARY_PATH"] = _prepended(library_folder, variables.get("LD_LIBRARY_PATH"))
    if installation.version is None or installation.version <= _LAST_VERSION_WITHOUT_NUMPY_2:
        require_numpy_1(variables)
    return variables


def _prepended(folder: Path, path: str | None) -> str:
    return f"{folder}{os.pathsep}{path}" if path else str(folder)
