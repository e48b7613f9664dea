"""Where a checkpoint's bytes would be read from: the page cache or the disk."""

from __future__ import annotations

from . import _core
from .checkpoint import Checkpoint
from .receipts import Tier

SAMPLES = 16
SAMPLE_BYTES = 4096


def likely_tier(checkpoint: Checkpoint) -> Tier:
    """page_cache where more than half of a few sampled pages of each local file are there. Raises CheckpointError.

    Samples, because the answer for every page of a large checkpoint takes longer than an estimate may.
    """
    if checkpoint.is_remote:
        return "remote"
    cached = sum(file.bytes * _cached_share(_core.FileImage(file.local_path)) for file in checkpoint.files)
    return "page_cache" if cached * 2 > checkpoint.total_bytes else "ssd"


def _cached_share(image: _core.FileImage) -> float:
    offsets = [image.bytes * i // SAMPLES for i in range(SAMPLES)]
    hits = [image.is_resident(offset, min(SAMPLE_BYTES, image.bytes - offset)) for offset in offsets]
    return sum(hits) / SAMPLES
