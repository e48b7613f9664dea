"""Who is compared, as data: the peers in their settings, the plain readers that make the ceiling, and our own rows.

A row's name says the state of the files first: `cold` (only on disk), `warm` (in memory: the page cache for peers, the
store for us).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A loader in one setting. `copies`: its tensors are copies of the file, and no mapping of it.

    `touched`: as much free memory as it may take is touched just before, which is closest to bare metal: in a virtual
    machine the first touch of idle memory costs many times what it costs later.
    """

    name: str
    title: str
    loader: str
    form: str = "single"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    touched: bool = True
    copies: bool = True
    package: str = ""


PEERS = (
    Peer(name="safetensors", title="safetensors", loader="safetensors", copies=False),
    Peer(name="safetensors_sharded", title="safetensors, sharded", loader="safetensors", form="sharded", copies=False),
    Peer(name="torch_load", title="torch.load", loader="torch_load", form="torch", arguments={"mmap": False}),
    Peer(
        name="torch_load_mmap",
        title="torch.load(mmap=True)",
        loader="torch_load",
        form="torch",
        arguments={"mmap": True},
        copies=False,
    ),
    Peer(
        name="runai",
        title="runai-model-streamer as it comes",
        loader="runai",
        touched=False,
        package="runai-model-streamer",
    ),
    Peer(
        name="runai_small_pages",
        title="runai-model-streamer, NUMPY_MADVISE_HUGEPAGE=0",
        loader="runai",
        environment={"NUMPY_MADVISE_HUGEPAGE": "0"},
        touched=False,
        package="runai-model-streamer",
    ),
    Peer(
        name="runai_touched",
        title="runai-model-streamer, memory touched before",
        loader="runai",
        package="runai-model-streamer",
    ),
    Peer(name="fastsafetensors", title="fastsafetensors", loader="fastsafetensors", package="fastsafetensors"),
    Peer(name="tensorizer", title="tensorizer", loader="tensorizer", form="tensorizer", package="tensorizer"),
)

MIB = 1 << 20
# Threads and bytes of one read. The fastest is the ceiling, so that no depth flatters us.
CEILINGS = {
    "ceiling.2x8": (2, 8 * MIB),
    "ceiling.4x8": (4, 8 * MIB),
    "ceiling.8x8": (8, 8 * MIB),
    "ceiling.4x32": (4, 32 * MIB),
    "ceiling.16x1": (16, MIB),
}

COLD_OURS, COLD_OURS_SHARDED, COLD_OURS_REPACKED = "cold.ours", "cold.ours_sharded", "cold.ours_repacked"
WARM_OURS_HUGE, WARM_OURS_4K = "warm.ours_huge_pages", "warm.ours_4k_pages"
PREMAPPED, PREMAPPED_4K = "premapped.ours_huge_pages", "premapped.ours_4k_pages"
COLD_LOAD_FILE, WARM_LOAD_FILE = "cold.load_file", "warm.load_file"
UNHASHED = "cold.ours_unhashed"
ARENA_BEST, ARENA_4K = "arena.best_pages", "arena.4k_pages"

# Those that the whole benchmark shows fastest.
FASTEST_CEILINGS = ("ceiling.4x8", "ceiling.8x8", "ceiling.4x32")
FASTEST_COLD_PEERS = ("cold.runai_touched", "cold.tensorizer")
COLD_SAFETENSORS, WARM_TORCH_MMAP = "cold.safetensors", "warm.torch_load_mmap"
WARM_COPYING_PEERS = tuple(f"warm.{peer.name}" for peer in PEERS if peer.copies)

TITLES = {
    **{f"cold.{peer.name}": peer.title for peer in PEERS},
    **{f"warm.{peer.name}": peer.title for peer in PEERS},
    **{
        name: f"plain O_DIRECT reader, {threads} threads × {chunk_bytes // MIB} MiB"
        for name, (threads, chunk_bytes) in CEILINGS.items()
    },
    COLD_OURS: "ours, Store.attach",
    COLD_OURS_SHARDED: "ours, Store.attach, sharded",
    COLD_OURS_REPACKED: "ours, Store.attach, repacked",
    COLD_LOAD_FILE: "ours, load_file (no store)",
    WARM_OURS_HUGE: "ours, Store.attach, 2 MB pages",
    WARM_OURS_4K: "ours, Store.attach, 4 KB pages",
    WARM_LOAD_FILE: "ours, load_file (no store)",
    PREMAPPED: "ours, Store.attach, arena mapped ahead, 2 MB pages",
    PREMAPPED_4K: "ours, Store.attach, arena mapped ahead, 4 KB pages",
    UNHASHED: "ours, Store.attach, without hashes",
    ARENA_BEST: "arena started, best pages",
    ARENA_4K: "arena started, 4 KB pages",
}


def is_ours(row: str) -> bool:
    return TITLES[row].startswith(("ours", "arena"))
