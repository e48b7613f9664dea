"""What loads of other backends' models have taught: how long they take, and the memory that they take where nothing
is declared. It is kept over restarts (`persistence.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serverless_triton.scheduler.foreign import ForeignModel
from serverless_triton.scheduler.view import ModelView

LEARNING_RATE = 0.3
ASSUMED_LOAD_S = 2.0  # before the first load: what a stock Python model takes


@dataclass(slots=True)
class LearnedModels:
    """By model. The control loop's, on its asyncio loop."""

    _load_s: dict[str, float] = field(default_factory=dict)
    _host_bytes: dict[str, int] = field(default_factory=dict)

    def view(self, name: str, declared: ForeignModel, members: Sequence[ModelView] = ()) -> ModelView:
        """What a start of the model needs, as far as is known; an ensemble that declares nothing needs what its members
        do. Device memory that nobody declares is none.
        """
        device_bytes, host_bytes = declared.device_bytes, declared.host_bytes
        members_device_bytes = sum(member.device_bytes for member in members)
        learned_bytes = max(self._host_bytes.get(name, 0), sum(member.host_bytes for member in members))
        return ModelView(
            name=name,
            checkpoint="",
            checkpoint_bytes=0,
            device_bytes=members_device_bytes if device_bytes is None else device_bytes,
            max_streams=declared.max_streams,
            host_bytes=learned_bytes if host_bytes is None else host_bytes,
            foreign=True,
            measured=host_bytes is None and (not members or any(member.measured for member in members)),
            load_s=self._load_s.get(name, ASSUMED_LOAD_S),
            members=tuple(dict.fromkeys(model for member in members for model in member.models)),
        )

    def loaded(self, view: ModelView, load_s: float, host_bytes: int | None) -> ModelView:
        """After one more load, which grew Triton by so many bytes (None: nobody knows): the view as it is now.

        The most counts: a load grows nothing where an ensemble has the model in memory already.
        """
        known_s = self._load_s.setdefault(view.name, load_s)
        self._load_s[view.name] = known_s + LEARNING_RATE * (load_s - known_s)
        if host_bytes is not None and view.measured:
            self._host_bytes[view.name] = most_bytes = max(host_bytes, view.host_bytes)
            view = replace(view, host_bytes=most_bytes)
        return replace(view, load_s=self._load_s[view.name])

    def to_json(self) -> dict[str, Any]:
        """Seconds and bytes by model."""
        return {"load_s": dict(self._load_s), "host_bytes": dict(self._host_bytes)}

    def from_json(self, value: Any) -> None:
        """What `to_json` gave. Raises ValueError, TypeError."""
        if not isinstance(value, dict):
            raise TypeError(f"is {type(value).__name__}; give load_s and host_bytes")
        load_s, host_bytes = _figures(value, "load_s"), _figures(value, "host_bytes")
        self._load_s.update(load_s)
        self._host_bytes.update({model: int(size) for model, size in host_bytes.items()})


def _figures(value: Mapping[str, Any], name: str) -> dict[str, float]:
    """Numbers from 0 by model. Raises ValueError."""
    figures = value.get(name, {})
    if not isinstance(figures, dict) or not all(_is_figure(figure) for figure in figures.values()):
        raise ValueError(f"{name} must be numbers from 0 by model")
    return figures


def _is_figure(figure: object) -> bool:
    return isinstance(figure, (int, float)) and not isinstance(figure, bool) and math.isfinite(figure) and figure >= 0
