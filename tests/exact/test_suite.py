"""The exact suite, `make test-exact`: what an architecture must pass on a processor to be listed in torch/exact.py.

Threads are part of the exactness contract, so both counts that models are commonly given here are tried.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.exact.trial import Trial, random_checkpoint

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2", "opt")
MANY = {"streams": 200, "tokens": 128, "longest_prompt": 300}
LONG = {"streams": 10, "tokens": 1500, "longest_prompt": 500}

pytestmark = [pytest.mark.exact, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda name: random_checkpoint(name, tmp_path_factory.mktemp(name))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [MANY, LONG], ids=["many", "long"])
def test_streams_of_the_demo_model_go_on_to_the_bit(demo_model: Path, size: dict[str, int], threads: int) -> None:
    assert Trial(checkpoint=demo_model, threads=threads, vocabulary=49_152, seed=2, **size).diverged() == []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("size", [MANY, LONG], ids=["many", "long"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_streams_of_an_architecture_go_on_to_the_bit(
    checkpoint: Callable[[str], Path], architecture: str, size: dict[str, int], dtype: str, threads: int
) -> None:
    assert Trial(checkpoint=checkpoint(architecture), dtype=dtype, threads=threads, **size).diverged() == []


def test_fast_mode_diverges_or_this_suite_could_not_tell(checkpoint: Callable[[str], Path]) -> None:
    assert len(Trial(checkpoint=checkpoint("llama"), mode="fast", **{**MANY, "streams": 60}).diverged()) > 5
