"""What loads of other backends' models have taught: how long they take, and the memory that they take where nothing
is declared. Of this scheduler's lifetime.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from serverless_triton.scheduler.estimator import LEARNING_RATE
from serverless_triton.scheduler.foreign import ForeignModel
from serverless_triton.scheduler.view import ModelView

ASSUMED_LOAD_S = 2.0  # before the first load: what a stock Python model takes


@dataclass(slots=True)
class LearnedModels:
    """By model. The control loop's, on its asyncio loop."""

    _load_s: dict[str, float] = field(default_factory=dict)
    _host_bytes: dict[str, int] = field(default_factory=dict)

    def view(self, name: str, declared: ForeignModel) -> ModelView:
        """What a start of the model needs, as far as is known. Device memory that nobody declares is none."""
        return ModelView(
            name=name,
            checkpoint="",
            checkpoint_bytes=0,
            device_bytes=declared.device_bytes or 0,
            max_streams=declared.max_streams,
            host_bytes=self._host_bytes.get(name, 0) if declared.host_bytes is None else declared.host_bytes,
            foreign=True,
            measured=declared.host_bytes is None,
            load_s=self._load_s.get(name, ASSUMED_LOAD_S),
        )

    def loaded(self, view: ModelView, load_s: float, host_bytes: int | None) -> ModelView:
        """After one more load, which grew Triton by so many bytes (None: nobody knows): the view as it is now."""
        known_s = self._load_s.setdefault(view.name, load_s)
        self._load_s[view.name] = known_s + LEARNING_RATE * (load_s - known_s)
        if host_bytes is not None and view.measured:
            self._host_bytes[view.name] = host_bytes
            view = replace(view, host_bytes=host_bytes)
        return replace(view, load_s=self._load_s[view.name])
