"""Other backends' models that a server has in memory from before this scheduler knew it. No agent can tell of them, so
they end, and come back when somebody asks for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from serverless_triton.scheduler.admission import ServerName
from serverless_triton.scheduler.effects import EffectFailed, Effects
from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.waiting_room import ModelOrder

logger = logging.getLogger(__name__)


async def unload_leftovers(effects: Effects, server: ServerName, order_of: Callable[[str], ModelOrder]) -> None:
    """Of a server that takes no starts yet. What cannot be unloaded stays, with a warning."""
    try:
        for model in sorted(await effects.loaded_models(server)):
            if _is_foreign(model, order_of):
                logger.info("unload_leftover model=%s server=%s", model, server)
                await effects.end_foreign(server, model)
    except EffectFailed as error:
        logger.warning("leftovers_stay server=%s error=%s", server, error)


def _is_foreign(model: str, order_of: Callable[[str], ModelOrder]) -> bool:
    try:
        return order_of(model).view.foreign
    except SchedulerError:  # not in the repository any more: whose it was cannot be said
        return False
