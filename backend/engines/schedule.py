"""Which sequences run, which wait, and what of each is computed in the next step. Computes no tokens.

Decodes come first, one token each; what is left of the step's tokens goes to prompts, oldest first, in chunks. When KV
memory runs out, the youngest gives its up and is recomputed later; nobody but a clock notices.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from serverless_triton.backend.engines.generation import Generation
from serverless_triton.backend.engines.kv_budget import KVBudget


@dataclass(slots=True, kw_only=True, eq=False)
class Stream:
    """A sequence whose KV is wanted, `held_tokens` of which are in the KV memory.

    One that is `reserved` is kept for a generation that is still elsewhere: it is fed, and nothing is drawn from it.
    `rounds` are the numbers of the requests that wait until it has been.
    """

    generation: Generation
    told_s: float
    reserved: bool = False
    rounds: list[int] = field(default_factory=list)
    arrival: int = -1
    slot: int | None = None
    held_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return len(self.generation.prompt_ids) + len(self.generation.ids)

    @property
    def idle(self) -> bool:
        """A reservation that nobody waits for."""
        return self.reserved and not self.rounds

    @property
    def requests(self) -> list[int]:
        """Who waits for events of it."""
        return self.rounds if self.reserved else [self.generation.request]

    def ids(self, first: int, last: int) -> list[int]:
        """Its tokens from position `first` to before `last`, prompt included."""
        prompt_ids, ids = self.generation.prompt_ids, self.generation.ids
        count = len(prompt_ids)
        if first >= count:
            return ids[first - count : last - count]
        return [*prompt_ids[first:last], *ids[: max(last - count, 0)]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Positions `start` to before `end` of a stream are computed in this step; `draws` says whether a token follows."""

    stream: Stream
    start: int
    end: int
    draws: bool

    @property
    def tokens(self) -> int:
        return self.end - self.start

    @property
    def decodes(self) -> bool:
        """Whether it feeds the token that was drawn last, and nothing else."""
        return self.draws and self.tokens == 1 and self.start > 0


class Schedule:
    """First come, first served. `step_tokens` bounds a step, unless as many streams decode."""

    def __init__(self, budget: KVBudget, step_tokens: int) -> None:
        self.budget = budget
        self.preemptions = 0
        self._step_tokens = step_tokens
        self._waiting: list[Stream] = []  # by arrival, as `_holding`
        self._holding: list[Stream] = []
        self._arrivals = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or any(not stream.idle for stream in self._holding)

    @property
    def waiting(self) -> list[Stream]:
        return self._waiting

    @property
    def holding(self) -> list[Stream]:
        """Those with KV memory, idle reservations included."""
        return self._holding

    def add(self, stream: Stream) -> None:
        """Queue a stream: a new one, or a reservation that is wanted again."""
        if stream.slot is not None or stream in self._waiting:
            return
        if stream.arrival < 0:
            stream.arrival, self._arrivals = self._arrivals, self._arrivals + 1
        insort(self._waiting, stream, key=_arrival)

    def remove(self, stream: Stream) -> None:
        """It ended; its memory is free."""
        if stream.slot is not None:
            self._give_up(stream)
        elif stream in self._waiting:
            self._waiting.remove(stream)

    def plan(self) -> list[Work]:
        """What the next step computes: decodes, then chunks of prompts. Admits and preempts for it."""
        preempted = self._grow()
        if not preempted:  # or what was just given up would be taken right back
            self._admit()
        busy = [stream for stream in self._holding if not stream.idle]
        works = [_work(stream, 1) for stream in busy if _decodes(stream)]
        left = max(self._step_tokens - len(works), 1)  # prompts come forward however many decode
        for stream in busy:
            if left > 0 and not _decodes(stream) and stream.held_tokens < stream.total_tokens:
                works.append(_work(stream, left))
                left -= works[-1].tokens
        return works

    def done(self, works: Iterable[Work]) -> None:
        """What `plan` said has been computed."""
        for work in works:
            work.stream.held_tokens = work.end

    def clear(self) -> None:
        self._waiting.clear()
        for stream in list(self._holding):
            self._give_up(stream)

    def _grow(self) -> bool:
        """Room for the tokens drawn last, oldest first. Whether somebody had to give up theirs."""
        before = self.preemptions
        for stream in list(self._holding):
            while stream.slot is not None and not self.budget.grow(stream.slot, stream.total_tokens):
                self._preempt(self._victim(stream))
        return self.preemptions > before

    def _victim(self, wanting: Stream) -> Stream:
        """The youngest, but nobody older than who wants the memory, unless nobody waits for it."""
        others = [s for s in self._holding if s is not wanting and (s.idle or s.arrival > wanting.arrival)]
        return max(others, key=_arrival, default=wanting)

    def _preempt(self, stream: Stream) -> None:
        self._give_up(stream)
        self.preemptions += 1
        if not stream.idle:
            insort(self._waiting, stream, key=_arrival)

    def _admit(self) -> None:
        while self._waiting:
            stream = self._waiting[0]
            stream.slot = self._take(stream)
            if stream.slot is None:
                return
            insort(self._holding, self._waiting.pop(0), key=_arrival)

    def _take(self, stream: Stream) -> int | None:
        """A slot with room for it, if need be that of reservations that nobody waits for, the youngest first."""
        tokens = stream.total_tokens + (not stream.reserved)  # and the token drawn first
        slot = self.budget.take(tokens)
        idle = [other for other in self._holding if other.idle]
        if slot is None and not self.budget.could_take(tokens, [s.slot for s in idle if s.slot is not None]):
            return None
        while slot is None:
            self._preempt(idle.pop())
            slot = self.budget.take(tokens)
        return slot

    def _give_up(self, stream: Stream) -> None:
        assert stream.slot is not None
        self.budget.free(stream.slot)
        stream.slot, stream.held_tokens = None, 0
        self._holding.remove(stream)


def _decodes(stream: Stream) -> bool:
    return not stream.reserved and stream.held_tokens == stream.total_tokens - 1 and stream.held_tokens > 0


def _work(stream: Stream, most: int) -> Work:
    start = stream.held_tokens
    end = min(stream.total_tokens, start + most)
    return Work(stream=stream, start=start, end=end, draws=not stream.reserved and end == stream.total_tokens)


def _arrival(stream: Stream) -> int:
    return stream.arrival
