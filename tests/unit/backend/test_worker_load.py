"""What a worker's load hands to the engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from serverless_triton.backend.device_map import Share
from serverless_triton.backend.engines.fake import FakeEngine
from serverless_triton.backend.engines.protocol import EngineSettings
from serverless_triton.backend.messages import ModelSpec
from serverless_triton.backend.worker_load import load_engine

SPEC = ModelSpec(checkpoint="/models/a", checkpoint_bytes=10, kv_cache_bytes=60, step_tokens=7)


class HandBuilder:
    """Implements protocol.EngineBuilder and stands in for the registry; keeps the settings."""

    settings: EngineSettings

    def builder(self, name: str) -> HandBuilder:
        return self

    def learn(self, checkpoint: str, dtype: str) -> None:
        pass

    def build(self, checkpoint: str, tensors: Any, *, settings: EngineSettings) -> FakeEngine:
        self.settings = settings
        return FakeEngine(max_sequence_tokens=64, max_streams=2)


class HandStore:
    def take(self) -> HandStore:
        return self

    def attach(self, checkpoint: str) -> Any:
        return SimpleNamespace(tensors={}, receipt=SimpleNamespace(tier="dram", bytes=10))


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
