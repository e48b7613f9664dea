"""Imports point one way: docs/architecture.md's table of folders, and what the stub inside Triton may import."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_triton.backend.triton_install import STUB_MODULES

ROOT = Path(__file__).parent.parent.parent
PACKAGE = "serverless_triton"
MAY_IMPORT = {
    "loader": set(),
    "backend": {"loader"},
    "scheduler": {"backend"},
    "cli": {"loader", "backend", "scheduler"},
}
# Of the backend, the scheduler sees the wire only, and how JSON is read that goes over it; `telemetry` is how a trace
# crosses it.
WIRE_MODULES = {
    *("agent_pb2", "agent_pb2_grpc", "triton_control_pb2", "triton_control_pb2_grpc"),
    *("client_json", "messages", "node_secret", "node_tls", "telemetry"),
}
STUB_MAY_IMPORT = {"numpy", "triton_python_backend_utils", *sys.stdlib_module_names}


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def absolute_name(node: ast.ImportFrom, path: Path) -> str:
    """The module that a `from` import names, relative ones included."""
    if not node.level:
        return node.module or ""
    package = module_name(path).split(".")
    above = node.level - (path.name == "__init__.py")
    base = package[: len(package) - above]
    return ".".join([*base, node.module] if node.module else base)


def imported(path: Path) -> Iterator[str]:
    """Every dotted name that the file imports, at whatever depth: `from a import b` may mean module a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{absolute_name(node, path)}.{alias.name}" for alias in node.names)


def our_imports(path: Path) -> set[tuple[str, str]]:
    """(folder, module in it) of every import of ours."""
    names = [name.split(".") for name in imported(path)]
    return {(parts[1], parts[2] if len(parts) > 2 else "") for parts in names if parts[0] == PACKAGE and len(parts) > 1}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_those_below_it(folder: str):
    allowed = MAY_IMPORT[folder] | {folder}
    wrong = {
        f"{path.relative_to(ROOT)} imports {target}.{module}"
        for path in sources(folder)
        for target, module in our_imports(path)
        if target not in allowed
    }
    assert not wrong


def test_the_scheduler_sees_only_the_backends_wire_messages():
    wrong = {
        f"{path.relative_to(ROOT)} imports backend.{module}"
        for path in sources("scheduler")
        for target, module in our_imports(path)
        if target == "backend" and module not in WIRE_MODULES
    }
    assert not wrong


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_nothing_imports_the_benchmarks_or_the_tests(folder: str):
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in imported(path)
        if name.split(".")[0] in {"perf", "tests"}
    }
    assert not wrong


@pytest.mark.parametrize("module", ["model", *STUB_MODULES])
def test_the_stub_imports_only_the_standard_library_numpy_and_what_is_copied_beside_it(module: str):
    path = ROOT / "backend" / f"{module}.py"
    foreign = {name.split(".")[0] for name in imported(path)} - STUB_MAY_IMPORT - {PACKAGE}
    assert not foreign
    assert our_imports(path) <= {("backend", copied) for copied in STUB_MODULES}


def test_the_stub_uses_absolute_imports_because_triton_imports_it_as_a_top_level_module():
    tree = ast.parse((ROOT / "backend" / "model.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def test_packages_that_the_stub_enters_through_are_empty():
    assert not (ROOT / "backend" / "__init__.py").read_text().strip()
    assert not (ROOT / "__init__.py").exists()


def test_relative_imports_are_resolved_from_modules_and_packages_alike():
    node = ast.parse("from ..loader import x").body[0]
    assert isinstance(node, ast.ImportFrom)
    assert absolute_name(node, ROOT / "backend" / "worker.py") == "serverless_triton.loader"
    assert absolute_name(node, ROOT / "backend" / "engines" / "__init__.py") == "serverless_triton.backend.loader"
