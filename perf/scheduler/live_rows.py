"""Who is compared, as data: policies as the configuration names them, loads by share of the slowest capacity."""

from __future__ import annotations

OURS = "startup_time"
RIVALS = ("random", "locality", "shepherd", "least_loaded")
LOADS = (0.3, 0.6, 0.9)


def row_of(policy: str, load: float) -> str:
    return f"{policy}@{load}"
