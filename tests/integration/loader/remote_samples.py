"""What tests of the remote tier share: checkpoints as bytes, memory instead of an arena, quick settings."""

import hashlib
import json
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from serverless_triton.loader import _core
from serverless_triton.loader.checkpoint import Checkpoint
from serverless_triton.loader.chunk_hashes import CHUNK_BYTES, ChunkHashes, render_hashes
from serverless_triton.loader.effects import LoadResult
from serverless_triton.loader.remote.loader import RemoteLoader
from serverless_triton.loader.remote.opener import RemoteOpener
from serverless_triton.loader.remote.settings import RemoteSettings
from serverless_triton.loader.remote.ssd_cache import SsdCache

ARENA_GRANULE_BYTES = 2 << 20
SETTINGS = RemoteSettings(
    connect_timeout_s=2, stall_timeout_s=2, request_timeout_s=10, patience_s=10, open_patience_s=5, freshness_s=0
)


def checkpoint_bytes(size_bytes: int, *, name: str = "weight", seed: int = 0) -> bytes:
    """A safetensors file with one tensor of random bytes."""
    header = json.dumps({name: {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size_bytes)


def hashes_of(content: bytes) -> bytes:
    """The sidecar of a file."""
    chunks = [content[begin : begin + CHUNK_BYTES] for begin in range(0, len(content), CHUNK_BYTES)]
    return render_hashes(ChunkHashes(file_bytes=len(content), digests=tuple(map(_core.xxh3_128, chunks))))


def shard_index(*names: str) -> bytes:
    return json.dumps({"weight_map": {f"weight{number}": name for number, name in enumerate(names)}}).encode()


class Tier:
    """Opener and loader over one cache directory, as a store has them."""

    def __init__(
        self, directory: Path | None = None, *, capacity_bytes: int = 1 << 30, settings: RemoteSettings = SETTINGS
    ) -> None:
        self.cache = SsdCache(directory, capacity_bytes) if directory else None
        self.opener = RemoteOpener(settings, self.cache)
        self.loader = RemoteLoader(settings, self.cache)

    def load(
        self, url: str, *, verify: bool = True, job: _core.ReadJob | None = None
    ) -> tuple[list[bytes], LoadResult]:
        """The files' bytes as they came into memory."""
        return self.load_checkpoint(self.opener.open(url), verify=verify, job=job)

    def load_checkpoint(
        self, checkpoint: Checkpoint, *, verify: bool = True, job: _core.ReadJob | None = None
    ) -> tuple[list[bytes], LoadResult]:
        """Each file goes into two pieces that are not in order, where it is long enough for that."""
        pieces: list[list[tuple[int, int]]] = []
        end = 4096
        for file in checkpoint.files:
            rest = max(0, file.bytes - CHUNK_BYTES)
            pieces.append([(end + rest, min(CHUNK_BYTES, file.bytes)), *([(end, rest)] if rest else [])])
            end += -(-file.bytes // 4096) * 4096
        arena = _core.Arena(-(-end // ARENA_GRANULE_BYTES) * ARENA_GRANULE_BYTES, "4k")
        result = self.loader.load(checkpoint, pieces, arena, job or _core.ReadJob(), verify=verify)
        memory = memoryview(arena)
        contents = [b"".join(bytes(memory[offset : offset + length]) for offset, length in file) for file in pieces]
        return contents, result

    def settle(self) -> None:
        """Waits for the cache's writer."""
        self.loader.settle(30)

    def close(self) -> None:
        """Gives the cache directory free, as the end of the process would."""
        self.settle()
        if self.cache:
            self.cache.close()


def cached_bytes(checkpoint: Checkpoint) -> list[bytes]:
    """What the SSD cache has of a checkpoint that it has completely."""
    assert not checkpoint.is_remote
    return [Path(file.cached_path).read_bytes() for file in checkpoint.files]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def quick(**changes: Any) -> RemoteSettings:
    return replace(SETTINGS, **changes)
