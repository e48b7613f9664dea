"""Other backends' models that a server has in memory from before this scheduler knew it. No agent can tell of them, so
they end, and come back when somebody asks for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from serverless_triton.scheduler.admission import ServerName
from serverless_triton.scheduler.effects import EffectFailed, Effects
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.view import ModelView
from serverless_triton.scheduler.waiting_room import ModelOrder

logger = logging.getLogger(__name__)


async def unload_leftovers(effects: Effects, server: ServerName, order_of: Callable[[str], ModelOrder]) -> None:
    """Of a server that takes no starts yet. What cannot be unloaded stays, with a warning."""
    try:
        views = [_view(model, order_of) for model in sorted(await effects.loaded_models(server))]
        foreign = [view for view in views if view is not None and view.foreign]
        for view in sorted(foreign, key=lambda view: -len(view.members)):  # ensembles before their members
            logger.info("unload_leftover model=%s server=%s", view.name, server)
            await effects.end_foreign(server, view.name)
    except EffectFailed as error:
        logger.warning("leftovers_stay server=%s error=%s", server, error)


def _view(model: str, order_of: Callable[[str], ModelOrder]) -> ModelView | None:
    try:
        return order_of(model).view
    except SchedulerError:  # not in the repository any more: whose it was cannot be said
        return None
