"""The Python that Triton's stub processes run in: an environment of its own, away from ours.

The stubs of Triton 2.51 corrupt tensors silently under numpy 2 (INT32 [5, 6, 7, 8] arrives as [5, 5, 5, 5]), so they
get numpy 1; ours talk to the engine over a socket and need not agree with it. Finding Triton is `triton_install`'s.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from serverless_triton.backend.errors import StubUnusable
from serverless_triton.backend.package_cache import Report, ensure_entry, install_into, silent

NUMPY = "numpy==1.26.4"
LIBRARY_FOLDER = "libpython"
# numpy 1.26 has no wheels for Python 3.13, so there the stub runs on another one.
_PYTHONS_WITH_NUMPY_1 = ((3, 12), (3, 11), (3, 10))

_DESCRIBE = """
import json, sys, sysconfig
print(json.dumps([list(sys.version_info[:2]), sys.base_prefix, sysconfig.get_config_var("LIBDIR")]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python that can run the stub; `library` is its libpython where the system's would be found instead of it."""

    executable: Path
    version: tuple[int, int]
    base_prefix: Path
    library: Path | None


def describe(executable: Path) -> Interpreter:
    """Raises StubUnusable where the Python does not run."""
    finished = subprocess.run([str(executable), "-c", _DESCRIBE], capture_output=True, text=True, check=False)
    if finished.returncode:
        raise StubUnusable(f"{executable} does not run: {finished.stderr.strip()[-300:]}")
    (major, minor), base_prefix, library_folder = json.loads(finished.stdout)
    library = Path(library_folder or base_prefix) / f"libpython{major}.{minor}.so.1.0"
    # Not found in the system's folders by the linker; with the wrong library, `import ssl` fails in the stub.
    foreign = Path(base_prefix) != Path("/usr") and library.exists()
    return Interpreter(
        executable=executable,
        version=(major, minor),
        base_prefix=Path(base_prefix),
        library=library if foreign else None,
    )


def choose_interpreter() -> Interpreter:
    """Ours where numpy 1 runs on it, else another one on PATH. Raises StubUnusable."""
    if sys.version_info[:2] in _PYTHONS_WITH_NUMPY_1:
        return describe(Path(sys.executable))
    for major, minor in _PYTHONS_WITH_NUMPY_1:
        found = shutil.which(f"python{major}.{minor}")
        with suppress(StubUnusable):  # a version manager's shim may stand for a Python that isn't there
            if found:
                return describe(Path(found))
    ours = "{}.{}".format(*sys.version_info)
    raise StubUnusable(
        f"Triton 2.51's stub needs numpy 1, which has no wheels for Python {ours}; "
        "install a Python of 3.10 to 3.12 beside it (on Debian or Ubuntu: apt-get install -y python3.12-venv)"
    )


def thin_environment(cache: Path, interpreter: Interpreter, report: Report = silent) -> Path:
    """The environment of our own stub: numpy and nothing else. Raises PackageUnavailable."""
    return _ensure(cache, "stub", interpreter, report, lambda _site_packages: None)


def stock_environment(cache: Path, interpreter: Interpreter, report: Report = silent) -> Path:
    """The environment of the usual Triton Python model, which imports torch and transformers in the stub.

    They come from our own environment, put last on its path, so that numpy stays the stub's own.
    Raises PackageUnavailable, or StubUnusable where the stub's Python is not ours and can't import our packages.
    """
    if interpreter.version != sys.version_info[:2]:
        raise StubUnusable(
            f"torch in the stub needs it to run Python {sys.version_info[0]}.{sys.version_info[1]}, as we do"
        )
    ours = sysconfig.get_path("purelib")

    def borrow_packages(site_packages: Path) -> None:
        (site_packages / "borrowed.pth").write_text(f"{ours}\n")

    return _ensure(cache, f"stock-{_digest(ours)}", interpreter, report, borrow_packages)


def _ensure(cache: Path, kind: str, interpreter: Interpreter, report: Report, finish: Callable[[Path], None]) -> Path:
    major, minor = interpreter.version
    entry = cache / f"{kind}-python{major}.{minor}-{_digest(str(interpreter.base_prefix))}"

    def build(environment: Path) -> None:
        report(f"installing {NUMPY} for Triton's stub")
        command = [str(interpreter.executable), "-m", "venv", "--without-pip", str(environment)]
        subprocess.run(command, check=True, capture_output=True)
        install_into(environment / "bin" / "python", NUMPY)
        finish(environment / "lib" / f"python{major}.{minor}" / "site-packages")
        _link_library(interpreter, environment / LIBRARY_FOLDER)

    return ensure_entry(entry, build, witness="bin/python")


def _link_library(interpreter: Interpreter, folder: Path) -> None:
    # A folder with this one link: the rest of that Python's libraries are no business of the server's.
    if interpreter.library:
        folder.mkdir()
        (folder / interpreter.library.name).symlink_to(interpreter.library)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]


def require_numpy_1(variables: Mapping[str, str]) -> None:
    """Raises StubUnusable unless numpy is numpy 1 for the Python that a stub started with these variables runs."""
    python = shutil.which("python3", path=variables.get("PATH")) or "python3"
    command = [python, "-c", "import numpy; print(numpy.__version__)"]
    finished = subprocess.run(command, env=dict(variables), capture_output=True, text=True, check=False)
    version = finished.stdout.strip()
    if finished.returncode or not version.startswith("1."):
        found = f"numpy {version}" if version else finished.stderr.strip()[-300:]
        raise StubUnusable(
            f"{python}: found {found}, but Triton 2.51's stub corrupts tensors under anything but numpy 1; "
            f"install {NUMPY} there"
        )
