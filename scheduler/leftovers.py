"""Other backends' models that a server has in memory from before this scheduler knew it. No agent can tell of them, so
they end, and come back when somebody asks for them: those that have left the repository meanwhile, too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from serverless_triton.scheduler.admission import ServerName
from serverless_triton.scheduler.effects import EffectFailed, Effects

logger = logging.getLogger(__name__)


async def unload_leftovers(effects: Effects, server: ServerName) -> None:
    """Of a server that takes no starts yet. What cannot be unloaded stays, with a warning."""
    try:
        found = {model: await effects.members(server, model) for model in sorted(await effects.loaded_models(server))}
        foreign = {model: members for model, members in found.items() if members is not None}
        for model in ensembles_first(foreign):
            logger.info("unload_leftover model=%s server=%s", model, server)
            await effects.end_foreign(server, model)
    except EffectFailed as error:
        logger.warning("leftovers_stay server=%s error=%s", server, error)


def ensembles_first(members: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Each model before its own members, whatever order they come in; by name where that leaves a choice."""
    left, ordered = dict(sorted(members.items())), []
    while left:
        needed = {member for model, of in left.items() for member in of if member != model}
        free = [model for model in left if model not in needed] or list(
            left
        )  # or each is in another: no order is right
        ordered += free
        for model in free:
            del left[model]
    return ordered
