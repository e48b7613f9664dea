"""Answers to evictions that wait until the images have given their memory back. Bookkeeping only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .messages import Evicted


@dataclass(slots=True, kw_only=True)
class _Eviction:
    client: int
    reply: Evicted
    images: set[int]


class PendingEvictions:
    """Which answers are due once which images are gone."""

    def __init__(self) -> None:
        self._evictions: list[_Eviction] = []

    def add(self, client: int, reply: Evicted, images: Iterable[int]) -> None:
        """The answer is due when all the images, by their ids, are gone."""
        self._evictions.append(_Eviction(client=client, reply=reply, images=set(images)))

    def gone(self, image_id: int) -> None:
        for eviction in self._evictions:
            eviction.images.discard(image_id)

    def take_due(self) -> list[tuple[int, Evicted]]:
        """The clients and answers that wait for nothing any more, each once."""
        due = [eviction for eviction in self._evictions if not eviction.images]
        self._evictions = [eviction for eviction in self._evictions if eviction.images]
        return [(eviction.client, eviction.reply) for eviction in due]
