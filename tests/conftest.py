"""What tests of every kind share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serverless_triton.cli.demo_model import ensure_demo_model

# Before anything imports torch: idle OpenMP threads that spin starve the processes under test on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory, converted once into the cache."""
    return ensure_demo_model()
