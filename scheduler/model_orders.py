"""What the control loop asks of the catalogue: what a start of a model needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from serverless_triton.backend.messages import ModelSpec
from serverless_triton.scheduler.catalogue import Catalogue, ModelEntry
from serverless_triton.scheduler.learned import LearnedModels
from serverless_triton.scheduler.view import ModelView
from serverless_triton.scheduler.waiting_room import ModelOrder


def model_orders(catalogue: Catalogue, learned: LearnedModels) -> Callable[[str], ModelOrder]:
    """It raises InvalidModelName, UnknownModel."""

    def order_of(name: str) -> ModelOrder:
        entry = catalogue.entry(name)
        if entry.foreign is not None:
            view = replace(learned.view(name, entry.foreign), definition=entry.definition)
            return ModelOrder(view=view, parameters={})
        return _generating(entry, entry.served())

    return order_of


def _generating(entry: ModelEntry, spec: ModelSpec) -> ModelOrder:
    view = ModelView(
        name=entry.name,
        checkpoint=spec.checkpoint,
        checkpoint_bytes=spec.checkpoint_bytes,
        device_bytes=spec.device_bytes,
        max_streams=spec.max_streams,
        definition=entry.definition,
    )
    parameters = {key: value.string_value for key, value in entry.config.parameters.items()}
    return ModelOrder(view=view, parameters=parameters)
