"""Who runs, who waits for a slot and who has ended unseen: the order of an engine's requests. Computes no tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from serverless_triton.backend.engines.generation import Generation
from serverless_triton.backend.engines.protocol import EngineEvent, InvalidRequest, TokenEvent


@dataclass(slots=True, kw_only=True)
class Admitted:
    """A generation with a slot, `held_tokens` of which are in the KV memory; the rest are fed in the next step."""

    generation: Generation
    slot: int
    held_tokens: int = 0


class Schedule:
    """First come, first served; the slot freed last is taken first, because its pages are warm."""

    def __init__(self, max_streams: int) -> None:
        self._free = list(range(max_streams))[::-1]
        self._waiting: deque[Generation] = deque()
        self._running: dict[int, Admitted] = {}
        self._ended: list[Generation] = []  # without a step: resumed at their end, or cancelled

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting or self._ended)

    @property
    def running(self) -> list[Admitted]:
        return list(self._running.values())

    def check_new(self, request: int) -> None:
        """Raises InvalidRequest where the number is in use."""
        if request in self._running or any(g.request == request for g in (*self._waiting, *self._ended)):
            raise InvalidRequest(f"request {request} is running already; give each request a number of its own")

    def add(self, generation: Generation) -> None:
        (self._waiting if generation.finish_reason is None else self._ended).append(generation)

    def cancel(self, request: int) -> None:
        """Frees the request's slot. Unknown and ended requests are ignored."""
        if request in self._running:
            generation = self._release(request)
        else:
            waiting = [g for g in self._waiting if g.request == request]
            if not waiting:
                return
            generation = waiting[0]
            self._waiting.remove(generation)
        generation.finish_reason = "cancelled"
        self._ended.append(generation)

    def admit(self) -> None:
        while self._waiting and self._free:
            generation = self._waiting.popleft()
            self._running[generation.request] = Admitted(generation=generation, slot=self._free.pop())

    def take_ended(self) -> list[EngineEvent]:
        """The terminal events of those that ended without a step."""
        events: list[EngineEvent] = [generation.event(len(generation.ids), "") for generation in self._ended]
        self._ended.clear()
        return events

    def retire(self, events: Iterable[EngineEvent]) -> None:
        """Frees the slots of the requests whose last event is among these."""
        for event in events:
            last = not isinstance(event, TokenEvent) or event.finish_reason is not None
            if last and event.request in self._running:
                self._release(event.request)

    def clear(self) -> None:
        self._waiting.clear()
        self._ended.clear()
        for request in list(self._running):
            self._release(request)

    def _release(self, request: int) -> Generation:
        admitted = self._running.pop(request)
        self._free.append(admitted.slot)
        return admitted.generation
