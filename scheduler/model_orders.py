"""What the control loop asks of the catalogue: what a start of a model needs."""

from __future__ import annotations

from dataclasses import replace

from serverless_triton.scheduler.calibration import Calibration, ModelFigures
from serverless_triton.scheduler.catalogue import Catalogue, ModelEntry
from serverless_triton.scheduler.definitions import combined
from serverless_triton.scheduler.errors import InvalidModelName, InvalidRequest, UnknownModel
from serverless_triton.scheduler.learned import LearnedModels
from serverless_triton.scheduler.model_lifecycle import ModelLifecycle
from serverless_triton.scheduler.view import ModelView
from serverless_triton.scheduler.waiting_room import ModelOrder, OrderOf

MOST_NESTED = 8  # ensembles in ensembles


def model_orders(catalogue: Catalogue, learned: LearnedModels, calibration: Calibration) -> OrderOf:
    """It raises InvalidModelName, UnknownModel, and InvalidRequest for an ensemble that cannot be."""

    def order_of(name: str, version: str = "") -> ModelOrder:
        entry = catalogue.entry(name)
        if entry.foreign is not None:  # a replica has all versions that are served
            entry.version(version)
            order = ModelOrder(view=_foreign(catalogue, learned, entry, ()), parameters={})
        else:
            entry.served()
            order = _generating(entry, version, calibration.model(name))
        return _lasting(order, entry.lifecycle)

    return order_of


def _lasting(order: ModelOrder, said: ModelLifecycle) -> ModelOrder:
    """With what is said of when its replicas come and go."""
    view = replace(
        order.view,
        min_replicas=said.min_replicas,
        max_replicas=said.max_replicas,
        priority=said.priority,
        pinned=said.pinned,
    )
    return replace(order, view=view, lifecycle=said)


def _foreign(catalogue: Catalogue, learned: LearnedModels, entry: ModelEntry, within: tuple[str, ...]) -> ModelView:
    """`within` are the ensembles that it is looked at for."""
    assert entry.foreign is not None
    path = (*within, entry.name)
    members = [_member(catalogue, name, path) for name in entry.foreign.members]
    views = [_foreign(catalogue, learned, member, path) for member in members]
    of = combined(entry.definition, *(view.definition for view in views)) if views else entry.definition
    return replace(learned.view(entry.name, entry.foreign, views), definition=of)


def _member(catalogue: Catalogue, name: str, within: tuple[str, ...]) -> ModelEntry:
    if name in within or len(within) > MOST_NESTED:
        raise InvalidRequest(f"ensemble '{within[0]}' is nested in itself, or too deeply, at model '{name}'")
    try:
        entry = catalogue.entry(name)
    except (InvalidModelName, UnknownModel) as error:
        raise InvalidRequest(f"ensemble '{within[-1]}' has a member that is not there: {error}") from error
    if entry.foreign is None:
        raise InvalidRequest(f"ensemble '{within[-1]}': '{name}' generates text, and cannot be a member of an ensemble")
    return entry


def _generating(entry: ModelEntry, version: str, figures: ModelFigures) -> ModelOrder:
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
    return ModelOrder(view=calibrated(view, figures), parameters=chosen.parameters)


def calibrated(view: ModelView, figures: ModelFigures) -> ModelView:
    """With what was learned of it."""
    return replace(
        view,
        fixed_offset_s=figures.fixed_offset_s,
        offset_error_s=figures.offset_error_s,
        migration_s_per_token=figures.migration_s_per_token,
        migration_fixed_s=figures.migration_fixed_s,
    )
