"""What the control loop asks of the catalogue: what a start of a model needs."""

from __future__ import annotations

from dataclasses import replace

from serverless_triton.scheduler.catalogue import Catalogue, ModelEntry
from serverless_triton.scheduler.learned import LearnedModels
from serverless_triton.scheduler.view import ModelView
from serverless_triton.scheduler.waiting_room import ModelOrder, OrderOf


def model_orders(catalogue: Catalogue, learned: LearnedModels) -> OrderOf:
    """It raises InvalidModelName, UnknownModel, InvalidRequest."""

    def order_of(name: str, version: str = "") -> ModelOrder:
        entry = catalogue.entry(name)
        if entry.foreign is not None:  # a replica has all versions that are served
            entry.version(version)
            view = replace(learned.view(name, entry.foreign), definition=entry.definition)
            return ModelOrder(view=view, parameters={})
        entry.served()
        return _generating(entry, version)

    return order_of


def _generating(entry: ModelEntry, version: str) -> ModelOrder:
    chosen = entry.by_version[entry.version(version)]
    view = ModelView(
        name=entry.name,
        checkpoint=chosen.spec.checkpoint,
        checkpoint_bytes=chosen.spec.checkpoint_bytes,
        device_bytes=chosen.spec.device_bytes,
        max_streams=chosen.spec.max_streams,
        definition=chosen.definition,
        version=chosen.version,
        others=frozenset(entry.versions) - {chosen.version},
        by_name=bool(version),
    )
    return ModelOrder(view=view, parameters=chosen.parameters)
