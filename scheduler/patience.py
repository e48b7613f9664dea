"""What it promises to wait (pure): for a place on a full replica, or for room on a server where it would start soon.

A server that has the model's weights near may be worth waiting for: a start elsewhere from further away takes longer
than the streams there go on. Expectations come with the view; one that has not come true by its time is dropped, so
nobody waits on and on.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from serverless_triton.scheduler.decision import StartRequest
from serverless_triton.scheduler.placement import Room, goes_freely
from serverless_triton.scheduler.survey import Survey
from serverless_triton.scheduler.view import ClusterView, ModelView, ReplicaView, ServerView

MOST_SERVERS = 4  # that are looked at one by one


def room_at_s(view: ClusterView, request: StartRequest, survey: Survey, limit_s: float) -> float | None:
    """When there is expected to be room where it would then start soonest, all in all within less than `limit_s`."""
    if view.now_s is None:
        return None
    columns, found = view.index.columns, None
    rows = np.flatnonzero(survey.unknown & ~survey.possible & (survey.start_s < limit_s))
    for row in rows[np.lexsort((columns.rank[rows], survey.start_s[rows]))][:MOST_SERVERS].tolist():
        name = columns.name_of[row]
        server, replicas = view.index.servers[name], view.on_server(name)
        at_s = _room_there_at_s(server, replicas, request.model, view.now_s)
        if at_s is None:
            continue
        total_s = at_s - view.now_s + server.park_s + float(survey.start_s[row])
        if total_s < limit_s:
            found, limit_s = at_s, total_s
    return found


def _room_there_at_s(
    server: ServerView, replicas: Collection[ReplicaView], model: ModelView, now_s: float
) -> float | None:
    """Once those have become idle that are expected to do so first."""
    room = Room.of(server, replicas)
    leaving: list[tuple[float, str, ReplicaView]] = []
    for one in replicas:
        if goes_freely(one, model):
            room.remove(one)
        elif one.idle_at_s is not None and one.idle_at_s >= now_s and not one.pinned and one.priority <= model.priority:
            leaving.append((one.idle_at_s, one.id, one))
    for at_s, _, one in sorted(leaving, key=lambda other: other[:2]):
        room.remove(one)
        if room.fits(model):
            return at_s
    return None
