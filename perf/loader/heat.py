"""One timed load as data: what a contender's process is told, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

# A contender's exit status where its files were not where they should be.
WRONG_STATE_STATUS = 3

Cache = Literal["cold", "warm", "any"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A checkpoint's path, and those of its files that hold tensors."""

    path: Path
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """`loader` with `arguments` is one of loaders.LOADERS. `warm_up` is loaded first, outside of the clock.

    `cache` is the state that the page cache is brought to; `touch_bytes` of free memory are touched just before the
    clock. `store_processes` take part: their CPU time and private memory count. `sum_plain` also times the same sum
    over plain memory.
    """

    loader: str
    target: Target
    warm_up: Target
    cache: Cache
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    touch_bytes: int = 0
    store_processes: tuple[int, ...] = ()
    sum_plain: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)


def heat_from_json(text: str) -> Heat:
    raw = json.loads(text)
    targets = {name: _target(raw[name]) for name in ("target", "warm_up")}
    return Heat(**{**raw, **targets, "store_processes": tuple(raw["store_processes"])})


def _target(raw: Mapping[str, Any]) -> Target:
    return Target(path=Path(raw["path"]), files=tuple(map(Path, raw["files"])))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`load_s` until the call returned, `sum_s` until a byte of every page was summed; `checksum` is that sum.

    `cpu_s` is of this process and the store's together. `peak_bytes` is the largest resident set of this process from
    the start of the clock, shared pages included, and what the store's processes hold for themselves;
    `page_cache_bytes` what was left of the files there, which is memory too.
    """

    bytes: int
    tensors: int
    load_s: float
    sum_s: float
    plain_sum_s: float | None
    checksum: int
    cpu_s: float
    peak_bytes: int
    page_cache_bytes: int
    cache_emptied_by: str | None
    receipt: Mapping[str, Any] | None

    @property
    def elapsed_s(self) -> float:
        return self.load_s + self.sum_s
