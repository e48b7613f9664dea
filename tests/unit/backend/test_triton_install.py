"""Finding Triton and preparing what a server is started with, over made-up installations."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serverless_triton.backend import stub_environment, triton_install
from serverless_triton.backend.errors import StubUnusable
from serverless_triton.backend.stub_environment import choose_interpreter, describe, require_numpy_1
from serverless_triton.backend.triton_install import (
    STUB_MODULES,
    TritonInstallation,
    assemble_backend_directory,
    find_triton,
    server_environment,
)


def make_executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def make_environment(folder: Path, numpy_version: str) -> Path:
    make_executable(folder / "bin" / "python3", f"#!/bin/sh\necho {numpy_version}\n")
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> TritonInstallation:
    home = tmp_path / "wheel"
    python_backend = home / "backends" / "python"
    (python_backend / "__pycache__").mkdir(parents=True)
    (python_backend / "libtriton_python.so").touch()
    return TritonInstallation(
        server=make_executable(home / "bin" / "tritonserver"),
        version=(2, 51),
        python_backend=python_backend,
        stub=make_executable(home / "stubs" / "triton_python_backend_stub"),
        interpreter=describe(Path(sys.executable)),
        environment=make_environment(tmp_path / "environment", "1.26.4"),
    )


def test_a_server_on_path_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "triton"
    server = make_executable(home / "bin" / "tritonserver")
    (home / "backends" / "python").mkdir(parents=True)
    (home / "backends" / "python" / "libtriton_python.so").touch()
    (home / "TRITON_VERSION").write_text("2.62.0\n")
    monkeypatch.setenv("PATH", str(server.parent))

    found = find_triton(tmp_path / "cache")

    assert (found.server, found.version, found.stub, found.environment) == (server, (2, 62), None, None)
    assert not (tmp_path / "cache").exists()


def test_a_server_without_the_python_backend_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server = make_executable(tmp_path / "triton" / "bin" / "tritonserver")
    monkeypatch.setenv("PATH", str(server.parent))
    monkeypatch.setattr(triton_install, "_SHIPPED_HOME", tmp_path / "nowhere")
    assert triton_install._shipped_triton() is None


def test_the_backend_directory_links_the_stub_and_copies_the_rest(tmp_path: Path, wheel: TritonInstallation):
    backends = assemble_backend_directory(wheel, tmp_path / "B").path

    stub = backends / "python" / "triton_python_backend_stub"
    assert stub.is_symlink()
    assert stub.resolve() == wheel.stub
    assert (backends / "python" / "libtriton_python.so").is_file()
    assert not (backends / "python" / "__pycache__").exists()


def test_our_backend_imports_from_its_own_folder_alone(tmp_path: Path, wheel: TritonInstallation):
    ours = assemble_backend_directory(wheel, tmp_path / "B").path / "serverless"

    imports = ", ".join(f"serverless_triton.backend.{module}" for module in STUB_MODULES)
    # -S: without our own installation in sight.
    command = [sys.executable, "-S", "-c", f"import {imports}; print(serverless_triton.backend.messages.__file__)"]
    path = os.pathsep.join([str(ours), str(Path(np.__file__).parent.parent)])
    finished = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)

    assert finished.stdout.strip() == str(ours / "serverless_triton" / "backend" / "messages.py")
    assert (ours / "model.py").is_file()


def test_assembling_again_leaves_nothing_of_the_last_time(tmp_path: Path, wheel: TritonInstallation):
    assemble_backend_directory(wheel, tmp_path / "B")
    (tmp_path / "B" / "serverless" / "stale.py").touch()
    assemble_backend_directory(wheel, tmp_path / "B")
    assert not (tmp_path / "B" / "serverless" / "stale.py").exists()


def test_the_stubs_python_comes_first_on_path(wheel: TritonInstallation):
    base = {"PATH": "/usr/bin:/bin", "PYTHONPATH": "/elsewhere", "PYTHONHOME": "/elsewhere", "KEPT": "1"}
    variables = server_environment(wheel, base=base)
    assert variables["PATH"] == f"{wheel.environment}/bin:/usr/bin:/bin"
    assert variables["KEPT"] == "1"
    assert not {"PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH"} & set(variables)


def test_the_systems_tools_stay_on_path_where_we_have_none(wheel: TritonInstallation):
    assert server_environment(wheel, base={})["PATH"] == f"{wheel.environment}/bin:{os.defpath}"


def test_a_python_that_is_not_the_systems_brings_its_library(tmp_path: Path, wheel: TritonInstallation):
    environment = make_environment(tmp_path / "other", "1.26.4")
    (environment / stub_environment.LIBRARY_FOLDER).mkdir()
    variables = server_environment(wheel, environment, base={"PATH": "/bin", "LD_LIBRARY_PATH": "/mine"})
    assert variables["LD_LIBRARY_PATH"] == f"{environment}/libpython:/mine"


@pytest.mark.parametrize("version", ["2.4.6", "2.0.0", ""])
def test_numpy_2_in_the_stub_is_refused_because_tensors_would_be_corrupted(
    tmp_path: Path, wheel: TritonInstallation, version: str
):
    with pytest.raises(StubUnusable, match=r"numpy==1\.26\.4"):
        server_environment(wheel, make_environment(tmp_path / "other", version), base={"PATH": "/bin"})


def test_a_newer_triton_may_have_any_numpy(tmp_path: Path, wheel: TritonInstallation):
    newer = TritonInstallation(
        server=wheel.server,
        version=(2, 62),
        python_backend=wheel.python_backend,
        stub=None,
        interpreter=None,
        environment=None,
    )
    assert server_environment(newer, base={"PATH": "/bin"}) == {"PATH": "/bin"}


def test_the_check_asks_the_python_that_the_stub_would_find(tmp_path: Path):
    one, two = make_environment(tmp_path / "1", "1.26.4"), make_environment(tmp_path / "2", "2.4.6")
    require_numpy_1({"PATH": f"{one}/bin:{two}/bin"})
    with pytest.raises(StubUnusable, match=r"2\.4\.6"):
        require_numpy_1({"PATH": f"{two}/bin:{one}/bin"})


def test_where_numpy_1_has_no_wheels_another_python_is_taken(monkeypatch: pytest.MonkeyPatch):
    here = sys.version_info
    monkeypatch.setattr(stub_environment.sys, "version_info", (3, 13, 0))
    monkeypatch.setattr(stub_environment.shutil, "which", lambda name: sys.executable if name == "python3.11" else None)
    assert choose_interpreter().version == here[:2]
    monkeypatch.setattr(stub_environment.shutil, "which", lambda name: None)
    with pytest.raises(StubUnusable, match=r"3\.13.*apt-get install"):
        choose_interpreter()
