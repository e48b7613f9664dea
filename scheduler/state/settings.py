"""What the scheduler is told about its state: a SQLite file, or an etcd cluster that several schedulers share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConfig:
    """Without a `path` what is learned lasts as long as the process."""

    path: Path | None = None
