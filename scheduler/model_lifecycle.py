"""What a model's config.pbtxt says about when its replicas come and go (pure).

These parameters are the scheduler's alone: no engine and no Triton sees them, they are no part of a model's definition,
and a change of them replaces no replica.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2

from serverless_triton.backend.messages import LIFECYCLE_PARAMETERS

ADAPTIVE, NEVER = "adaptive", "never"
MOST_REPLICAS = 10_000
_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLifecycle:
    """`keep_alive_s`: how long an idle replica stays; None: as the scheduler's configuration says; "adaptive": as the
    model's idle times teach; "never": only until its room is needed. Of `max_replicas` None is as many as there is
    room for.
    """

    keep_alive_s: float | str | None = None
    min_replicas: int = 0
    max_replicas: int | None = None
    priority: int = 0  # idle replicas of less make room first
    pinned: bool = False  # never evicted, and kept in DRAM

    @property
    def is_lasting(self) -> bool:
        """Whether the model is wanted though nobody asks for it."""
        return self.pinned or self.min_replicas > 0


UNSAID = ModelLifecycle()


def take_lifecycle(config: model_config_pb2.ModelConfig) -> ModelLifecycle:
    """What it says; the configuration is without it afterwards. Raises ValueError naming the parameter."""
    there = [name for name in LIFECYCLE_PARAMETERS if name in config.parameters]
    said = {name: str(config.parameters[name].string_value) for name in there}
    for name in there:
        del config.parameters[name]
    return parse_lifecycle(said)


def parse_lifecycle(said: Mapping[str, str]) -> ModelLifecycle:
    """Raises ValueError naming the parameter and what would be right."""
    found = ModelLifecycle(
        keep_alive_s=_keep_alive(said.get("keep_alive_s")),
        min_replicas=_whole("min_replicas", said.get("min_replicas", "0"), 0),
        max_replicas=_whole("max_replicas", said["max_replicas"], 1) if "max_replicas" in said else None,
        priority=_whole("priority", said.get("priority", "0"), 0),
        pinned=_flag("pinned", said.get("pinned", "false")),
    )
    if found.max_replicas is not None and found.min_replicas > found.max_replicas:
        raise ValueError(
            f"parameters.min_replicas is {found.min_replicas}, more than max_replicas, which is {found.max_replicas}"
        )
    return found


def _keep_alive(text: str | None) -> float | str | None:
    if text in (None, ADAPTIVE, NEVER):
        return text
    assert text is not None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise ValueError(
            f"parameters.keep_alive_s is {text[:64]!r}; use seconds, as 60 or 0.5, or '{ADAPTIVE}', or '{NEVER}'"
        )
    return seconds


def _whole(name: str, text: str, least: int) -> int:
    if not _WHOLE_NUMBER.fullmatch(text) or not least <= int(text) <= MOST_REPLICAS:
        raise ValueError(f"parameters.{name} is {text[:64]!r}; use a whole number from {least} to {MOST_REPLICAS}")
    return int(text)


def _flag(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"parameters.{name} is {text[:64]!r}; use true or false")
    return text == "true"
