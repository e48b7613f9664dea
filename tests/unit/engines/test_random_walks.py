"""Whatever is asked of an engine in whatever order: each request and round ends once, and all memory comes back."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from serverless_triton.backend.engines.fake import FakeEngine, fake_token
from serverless_triton.backend.engines.protocol import (
    RESERVATION_S,
    CatchUpRequest,
    EngineEvent,
    GenerationRequest,
    InvalidRequest,
    Reservation,
    TokenEvent,
    UnknownRequest,
    is_terminal,
)

LONGEST = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A stream that clients ask for, here or first elsewhere."""

    name: str
    prompt: bytes
    max_tokens: int

    @property
    def sampling(self) -> dict[str, int]:
        return {"max_tokens": self.max_tokens}

    def ids(self, first: int, last: int) -> list[int]:
        return [fake_token(self.prompt, position) for position in range(first, min(last, self.max_tokens))]


@dataclass(slots=True, kw_only=True)
class Open:
    """What is known of a request that has not ended. Rounds have no tokens."""

    asked: Asked
    position: int
    is_round: bool
    told_prompt: bool = False


@dataclass(slots=True)
class Walk:
    """One engine, and every choice drawn."""

    draw: random.Random
    now_s: float = 0.0
    numbers: int = 0
    ended: int = 0
    refused: int = 0
    open: dict[int, Open] = field(default_factory=dict)
    frozen: dict[int, int] = field(default_factory=dict)  # request → its tokens when it was frozen
    engine: FakeEngine = field(init=False)
    streams: list[Asked] = field(init=False)

    def __post_init__(self) -> None:
        draw = self.draw
        self.engine = FakeEngine(
            max_sequence_tokens=LONGEST,
            max_streams=draw.randint(1, 5),
            kv_tokens=draw.choice([LONGEST, LONGEST + 64, 3 * LONGEST]),
            step_tokens=draw.randint(1, 80),
            clock=lambda: self.now_s,
        )
        self.streams = [
            Asked(name=f"s{i}", prompt=draw.randbytes(draw.randint(1, 90)), max_tokens=draw.randint(1, 70))
            for i in range(5)
        ]

    def turn(self) -> None:
        actions = [self.step, self.submit, self.catch_up, self.cancel, self.freeze, self.release, self.wait]
        self.draw.choices(actions, weights=[12, 3, 3, 1, 1, 0.5, 1])[0]()

    def step(self) -> None:
        for event in self.engine.step():
            self.hear(event)
        stats = self.engine.stats()
        assert stats.kv_tokens_used <= stats.kv_tokens_total

    def hear(self, event: EngineEvent) -> None:
        known = self.open[event.request]  # or it comes after the last, or from one that was refused
        if isinstance(event, TokenEvent) and not known.is_round:
            self.hear_tokens(event, known)
        if is_terminal(event):
            self.ended += 1
            del self.open[event.request]

    def hear_tokens(self, event: TokenEvent, known: Open) -> None:
        after = event.first_position + len(event.output_ids)
        assert event.first_position == known.position
        assert list(event.output_ids) == known.asked.ids(known.position, after)
        assert (event.prompt_ids is None) == known.told_prompt
        known.position, known.told_prompt = after, True
        assert (event.finish_reason == "frozen") == (event.request in self.frozen)
        assert self.frozen.get(event.request, after) == after

    def submit(self) -> None:
        asked, resume = self.draw.choice(self.streams), self.draw.choice([0, 0, self.draw.randint(0, 20)])
        request = GenerationRequest(
            request=self.number(),
            input_ids=asked.prompt,
            resume_token_ids=asked.ids(0, resume),
            sampling_parameters={"max_tokens": 0} if self.draw.random() < 0.1 else asked.sampling,
            reservation=self.key(asked) if self.draw.random() < 0.5 else None,
        )
        try:
            self.engine.submit(request)
        except InvalidRequest:
            self.refused += 1
        else:
            self.open[request.request] = Open(asked=asked, position=len(request.resume_token_ids), is_round=False)

    def catch_up(self) -> None:
        asked, start = self.draw.choice(self.streams), self.draw.choice([0, self.draw.randint(0, 20)])
        request = CatchUpRequest(
            request=self.number(),
            reservation=self.key(asked),
            input_ids=asked.prompt,
            resume_token_ids=asked.ids(start, start + self.draw.randint(0, 20)),
            sampling_parameters=asked.sampling,
            start_position=start,
        )
        try:
            self.engine.catch_up(request)
        except InvalidRequest:
            self.refused += 1
        else:
            self.open[request.request] = Open(asked=asked, position=0, is_round=True)

    def cancel(self) -> None:
        self.engine.cancel(self.draw.randint(0, self.numbers))

    def freeze(self) -> None:
        request = self.draw.randint(0, self.numbers)
        try:
            state = self.engine.freeze(request)
        except UnknownRequest:
            return
        known = self.open[request]
        assert list(state.output_ids) == known.asked.ids(0, known.position)
        self.frozen[request] = known.position

    def release(self) -> None:
        self.engine.release(self.key(self.draw.choice(self.streams)))

    def wait(self) -> None:
        self.now_s += self.draw.choice([0.1, 1.0, RESERVATION_S / 2])
        self.engine.expire(self.now_s)

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def key(self, asked: Asked) -> Reservation:
        """Attempts go on with the time, and a few come late."""
        return Reservation(stream=asked.name, attempt=max(0, self.numbers // 40 - self.draw.randint(0, 1)))

    def come_to_an_end(self) -> None:
        for _ in range(5000):
            if not self.engine.has_work:
                break
            self.step()
        self.now_s += 2 * RESERVATION_S
        self.engine.expire(self.now_s)
        self.step()


@pytest.mark.parametrize("seed", range(40))
def test_each_request_ends_once_and_all_memory_comes_back(seed: int) -> None:
    walk = Walk(random.Random(seed))
    for _ in range(600):
        walk.turn()
    walk.come_to_an_end()
    assert (walk.open, walk.engine.has_work) == ({}, False)
    assert walk.ended + walk.refused == walk.numbers
    stats = walk.engine.stats()
    assert (stats.running, stats.waiting, stats.reserved, stats.kv_tokens_used) == (0, 0, 0, 0)


def test_walks_lead_everywhere() -> None:
    walks = [Walk(random.Random(seed)) for seed in range(10)]
    for walk in walks:
        for _ in range(600):
            walk.turn()
    assert all(walk.refused and walk.ended for walk in walks)
    assert sum(len(walk.frozen) for walk in walks) > 20
    assert sum(walk.engine.stats().preemptions for walk in walks) > 20
