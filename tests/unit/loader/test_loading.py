"""What a load says about where its bytes came from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serverless_triton.loader import _core
from serverless_triton.loader.checkpoint import Checkpoint
from serverless_triton.loader.loading import ImageLoader


@pytest.mark.parametrize(
    ("cached", "read", "tier", "share"), [(40, 60, "ssd", 0.6), (99, 1, "page_cache", 0.99), (0, 0, "ssd", 0.0)]
)
def test_a_load_says_which_share_of_it_came_from_its_tier(
    tmp_path: Path, cached: int, read: int, tier: str, share: float
) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    report = SimpleNamespace(page_cache_bytes=cached, disk_bytes=read, direct_bytes=0)
    reader: Any = SimpleNamespace(read=lambda *_, **__: report)
    loader = ImageLoader(arena=_core.Arena(2 << 20, "4k"), reader=reader, verify=False)

    result = loader.load(Checkpoint.open(tmp_path), [], _core.ReadJob())

    assert (result.tier, result.tier_share) == (tier, share)
