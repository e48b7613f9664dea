"""Answers to evictions that wait until the images have given their memory back. Bookkeeping only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .replies import Evicted


@dataclass(slots=True, kw_only=True)
class _Eviction:
    client: int
    reply: Evicted
    images: set[int]
    on_devices: set[int]


class PendingEvictions:
    """Which answers are due once which images are gone."""

    def __init__(self) -> None:
        self._evictions: list[_Eviction] = []

    def add(self, client: int, reply: Evicted, images: Iterable[int], on_devices: Iterable[int]) -> None:
        """The answer is due when all the images are gone, by their ids: those on devices have ids of their own."""
        self._evictions.append(_Eviction(client=client, reply=reply, images=set(images), on_devices=set(on_devices)))

    def awaits(self, image_id: int) -> bool:
        """Whether an answer waits for that image in DRAM."""
        return any(image_id in eviction.images for eviction in self._evictions)

    def drop(self, client: int, request_id: int | None) -> list[int]:
        """The answer to one request (None: those to all) of a client is due no more; returns the requests' ids."""
        dropped = [
            eviction
            for eviction in self._evictions
            if eviction.client == client and request_id in (None, eviction.reply.id)
        ]
        self._evictions = [eviction for eviction in self._evictions if eviction not in dropped]
        return [eviction.reply.id for eviction in dropped]

    def gone(self, image_id: int) -> None:
        for eviction in self._evictions:
            eviction.images.discard(image_id)

    def gone_from_device(self, image_id: int) -> None:
        for eviction in self._evictions:
            eviction.on_devices.discard(image_id)

    def take_due(self) -> list[tuple[int, Evicted]]:
        """The clients and answers that wait for nothing any more, each once."""
        due = [eviction for eviction in self._evictions if not (eviction.images or eviction.on_devices)]
        self._evictions = [eviction for eviction in self._evictions if eviction.images or eviction.on_devices]
        return [(eviction.client, eviction.reply) for eviction in due]
