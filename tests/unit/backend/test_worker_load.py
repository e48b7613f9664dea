"""What a worker's load hands to the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serverless_triton.backend.device_map import Share
from serverless_triton.backend.engines.fake import FakeEngine
from serverless_triton.backend.engines.protocol import EngineSettings
from serverless_triton.backend.messages import ModelSpec
from serverless_triton.backend.worker_load import load_engine
from serverless_triton.loader.chunk_hashes import ChunkHashes, render_hashes

SPEC = ModelSpec(checkpoint="/models/a", checkpoint_bytes=10, kv_cache_bytes=60, step_tokens=7)


class HandBuilder:
    """Implements protocol.EngineBuilder and stands in for the registry; keeps the settings."""

    settings: EngineSettings
    chunk_digests: Any

    def builder(self, name: str) -> HandBuilder:
        return self

    def learn(self, checkpoint: str, dtype: str) -> None:
        pass

    def build(self, checkpoint: str, tensors: Any, *, settings: EngineSettings, chunk_digests: Any) -> FakeEngine:
        self.settings, self.chunk_digests = settings, chunk_digests
        return FakeEngine(max_sequence_tokens=64, max_streams=2)


class HandStore:
    def __init__(self, verified: bool = False, queue_s: float = 0.0) -> None:
        self.verified = verified
        self.queue_s = queue_s

    def take(self) -> HandStore:
        return self

    def attach(self, checkpoint: str) -> Any:
        receipt = SimpleNamespace(tier="dram", queue_s=self.queue_s, bytes=10, verified=self.verified)
        return SimpleNamespace(tensors={}, receipt=receipt)


def settings_for(shares: Any) -> EngineSettings:
    builder = HandBuilder()
    load_engine(builder, HandStore(), SPEC, shares)  # type: ignore[arg-type]
    return builder.settings


def test_an_engine_gets_the_models_limits_and_the_shares_that_the_agent_granted() -> None:
    settings = settings_for([["cuda:0", 3, 100], ["cuda:1", 2, 50]])
    assert (settings.kv_cache_bytes, settings.step_tokens) == (60, 7)
    assert settings.shares == (Share(device="cuda:0", parts=3, bytes=100), Share(device="cuda:1", parts=2, bytes=50))


def test_without_shares_an_engine_computes_where_the_tensors_are() -> None:
    assert settings_for([]).shares == ()


def hashed_checkpoint(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(b"x" * 10)
    hashes = ChunkHashes(file_bytes=10, digests=("ab" * 16,))
    (folder / "model.safetensors.chunks.json").write_bytes(render_hashes(hashes))
    return folder


@pytest.mark.parametrize(("verified", "digests"), [(True, {"model.safetensors": ("ab" * 16,)}), (False, {})])
def test_an_engine_hears_the_digests_that_the_store_has_compared(
    tmp_path: Path, verified: bool, digests: dict[str, tuple[str, ...]]
) -> None:
    builder, spec = HandBuilder(), replace(SPEC, checkpoint=str(hashed_checkpoint(tmp_path)))
    load_engine(builder, HandStore(verified), spec)  # type: ignore[arg-type]
    assert builder.chunk_digests == digests


@pytest.mark.parametrize(("queue_s", "told"), [(0.25, [0.25]), (0.0, [])])
def test_what_the_store_kept_it_waiting_for_other_loads_is_a_span(queue_s: float, told: list[float]) -> None:
    loaded = load_engine(HandBuilder(), HandStore(queue_s=queue_s), SPEC)  # type: ignore[arg-type]
    waits = [end_s - start_s for name, start_s, end_s in loaded.spans if name == "store.queue"]
    assert waits == [pytest.approx(wait_s) for wait_s in told]
