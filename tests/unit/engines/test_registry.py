"""Engines by name, imported only when they are wanted."""

import subprocess
import sys

import pytest

from serverless_triton.backend.engines.fake import FakeEngineBuilder
from serverless_triton.backend.engines.protocol import ModelNotSupported
from serverless_triton.backend.engines.registry import EngineRegistry, engine_builder


def test_an_engine_is_found_by_its_name() -> None:
    assert isinstance(engine_builder("fake"), FakeEngineBuilder)
    assert type(engine_builder("torch")).__name__ == "TorchEngineBuilder"


def test_an_unknown_engine_is_answered_with_those_installed() -> None:
    with pytest.raises(ModelNotSupported, match="engine 'onnx' is unknown; installed are fake, torch"):
        engine_builder("onnx")


def test_a_registry_keeps_its_builders() -> None:
    registry = EngineRegistry()
    assert registry.builder("fake") is registry.builder("fake")


def test_the_fake_engine_needs_no_torch() -> None:
    program = (
        "import sys; from serverless_triton.backend.engines.registry import engine_builder; engine_builder('fake');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers', 'tokenizers')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
