"""One worker, its agent and stub played by hand over socketpairs; the engine does what the test says."""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serverless_triton.backend import token_state
from serverless_triton.backend.channel import Channel, ChannelClosed
from serverless_triton.backend.engines.fake import FakeEngine
from serverless_triton.backend.engines.protocol import GenerationRequest
from serverless_triton.backend.messages import (
    Cancel,
    CatchUp,
    CaughtUp,
    Failed,
    Freeze,
    Generate,
    Load,
    Loaded,
    Message,
    Position,
    Retire,
    Serve,
    Stats,
    Tokens,
    WorkerHello,
)
from serverless_triton.backend.token_state import parse_token_state
from serverless_triton.backend.worker import STUCK_S, TICK_S, Worker
from serverless_triton.backend.worker_stub import SIGN_OF_LIFE_S, Asked, StubLink

WAIT_S = 10.0
PARAMETERS = {"checkpoint": "/models/a", "checkpoint_bytes": "10", "kv_cache_bytes": "60", "engine": "fake"}
SECRET = "a prompt that no log may show"


class HandEngine(FakeEngine):
    """A fake engine that waits for the test's word before each step, and raises what it says."""

    def __init__(self) -> None:
        super().__init__(max_sequence_tokens=64, max_streams=2, pause=self._wait)
        self.steps: queue.Queue[Exception | None] = queue.Queue()
        self.stepping = threading.Event()
        self.refusal: Exception | None = None

    def _wait(self) -> None:
        self.stepping.set()
        outcome = self.steps.get(timeout=WAIT_S)
        if outcome is not None:
            raise outcome

    def submit(self, request: GenerationRequest) -> None:
        if self.refusal is not None:
            raise self.refusal
        super().submit(request)


class HandBuilder:
    """Implements protocol.EngineBuilder and stands in for the registry."""

    def __init__(self) -> None:
        self.engine = HandEngine()
        self.failure: Exception | None = None

    def builder(self, name: str) -> HandBuilder:
        return self

    def learn(self, checkpoint: str, dtype: str) -> None:
        pass

    def build(self, *_: Any, **__: Any) -> HandEngine:
        if self.failure is not None:
            raise self.failure
        return self.engine


class HandStore:
    def __init__(self, socket: Path, timeout_s: float, connect_timeout_s: float = 2.0) -> None:
        self.is_mapped = False

    def premap(self) -> None:
        self.is_mapped = True

    def attach(self, checkpoint: Path) -> Any:
        assert self.is_mapped
        return SimpleNamespace(tensors={}, receipt=SimpleNamespace(tier="dram", queue_s=0.0, bytes=10, verified=False))


class Bench:
    """The worker under test in a thread of its own, and the far ends of its two sockets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, theirs = socket.socketpair()
        self.agent = Channel(theirs)
        self.stub: Channel | None = None
        self.served: list[Channel] = []
        adopt = Channel.adopt
        monkeypatch.setattr(
            Channel, "adopt", classmethod(lambda cls, fd: self.served.append(adopt(fd)) or self.served[-1])
        )
        monkeypatch.setattr(Channel, "connect", classmethod(lambda cls, path, timeout_s: cls(ours)))
        self.builder = HandBuilder()
        self.now_s = 0.0
        self.worker = Worker(self.builder, Path("agent"), Path("store"), lambda: self.now_s)  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()
        assert self.agent.receive()[0] == WorkerHello()

    @property
    def engine(self) -> HandEngine:
        return self.builder.engine

    def load(self) -> Loaded | Failed:
        self.agent.send(Load(replica="r1", model="m", parameters=PARAMETERS))
        answer, _ = self.agent.receive()
        assert isinstance(answer, (Loaded, Failed))
        return answer

    def serve(self) -> Channel:
        assert isinstance(self.load(), Loaded)
        ours, theirs = socket.socketpair()
        self.agent.send(Serve(replica="r1"), [theirs.fileno()])
        theirs.close()
        self.stub = Channel(ours)
        self.stub.set_timeout(WAIT_S)
        assert isinstance(self.stub.receive()[0], Loaded)  # where its start's time went
        return self.stub

    def ask(self, message: Generate | CatchUp | Freeze | Cancel) -> None:
        """Returns when the worker has read it, which the engine's next step will find done."""
        assert self.stub is not None
        self.stub.send(message)
        while self.worker._commands.empty():
            os.sched_yield()

    def ended(self) -> bool:
        self.thread.join(WAIT_S)
        return not self.thread.is_alive()

    def close(self) -> None:
        """In a worker process this is the process's end."""
        assert self.ended()
        for channel in (self.agent, self.worker._agent, *self.served, *([self.stub] if self.stub else [])):
            channel.close()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=lambda count: None))
    monkeypatch.setattr("serverless_triton.loader.client.Store", HandStore)
    bench = Bench(monkeypatch)
    yield bench
    for _ in range(100):
        bench.engine.steps.put(None)
    bench.agent.send(Retire())
    bench.close()


def prompt(request: int, max_tokens: int = 2) -> Generate:
    return Generate(request=request, text=SECRET, sampling_parameters={"max_tokens": max_tokens, "ignore_eos": True})


def heard(stub: Channel) -> Tokens | Failed:
    message, _ = stub.receive()
    assert isinstance(message, (Tokens, Failed))
    return message


def heard_to_the_end(stub: Channel) -> list[Message]:
    """Until a message that ends a request."""
    messages: list[Message] = []
    while True:
        messages.append(stub.receive()[0])
        if isinstance(messages[-1], (Failed, CaughtUp)) or getattr(messages[-1], "finish_reason", None) is not None:
            return messages


def test_a_loaded_worker_generates_for_its_stub(bench: Bench):
    stub = bench.serve()
    stub.send(prompt(1))
    bench.engine.steps.put(None)
    first = heard(stub)
    bench.engine.steps.put(None)
    last = heard(stub)
    assert isinstance(first, Tokens)
    assert isinstance(last, Tokens)
    assert (first.first_position, last.first_position, last.finish_reason) == (0, 1, "length")


def test_a_loaded_worker_says_what_its_engine_promises_also_to_the_next_agent(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        loaded = bench.load()
    assert isinstance(loaded, Loaded)
    assert loaded.exactness == dataclasses.asdict(bench.engine.exactness)
    assert bench.worker._hello is not None
    assert bench.worker._hello.exactness == loaded.exactness
    assert "engine_ready model=m replica=r1 exactness=exact reason=" in caplog.text


@pytest.mark.parametrize("failure", [RuntimeError("no kernel"), ZeroDivisionError(), AttributeError("config.heads")])
def test_whatever_a_checkpoint_provokes_is_reported_as_a_failed_load(bench: Bench, failure: Exception):
    bench.builder.failure = failure
    answer = bench.load()
    assert isinstance(answer, Failed)
    assert answer.code == "INTERNAL"
    assert answer.message == f"failed to load 'm': /models/a: {type(failure).__name__}: {failure}"
    assert bench.ended()


@pytest.mark.parametrize(
    ("failure", "code"), [(ValueError("heads is 0"), "INVALID_ARGUMENT"), (MemoryError("no memory"), "UNAVAILABLE")]
)
def test_a_refused_load_says_whose_fault_it_is(bench: Bench, failure: Exception, code: str):
    bench.builder.failure = failure
    answer = bench.load()
    assert isinstance(answer, Failed)
    assert (answer.code, answer.message) == (code, f"failed to load 'm': {failure}")
    assert bench.ended()


def test_an_engine_that_fails_in_a_step_fails_all_in_flight_for_good_and_its_worker_stops(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    stub = bench.serve()
    stub.send(prompt(1))
    assert bench.engine.stepping.wait(WAIT_S)
    bench.ask(prompt(2))
    bench.engine.steps.put(None)
    assert isinstance(heard(stub), Tokens)
    with caplog.at_level(logging.ERROR):
        bench.engine.steps.put(RuntimeError(SECRET))
        failures = []
        while len(failures) < 2:
            message = heard(stub)
            failures += [message] if isinstance(message, Failed) else []
        assert bench.ended()
    reason = "the engine of model 'm' failed: RuntimeError"
    assert failures == [Failed(request=number, code="INTERNAL", message=reason) for number in (1, 2)]
    assert "engine_failed model=m error=RuntimeError at=test_worker.py:" in caplog.text
    assert SECRET not in caplog.text


def test_a_request_that_the_engine_trips_over_fails_alone(bench: Bench, caplog: pytest.LogCaptureFixture):
    stub = bench.serve()
    bench.engine.refusal = KeyError(SECRET)
    stub.send(prompt(1))
    assert heard(stub) == Failed(request=1, code="INTERNAL", message="the engine of model 'm' failed: KeyError")
    bench.engine.refusal = None
    bench.engine.steps.put(None)
    stub.send(prompt(2, max_tokens=1))
    message = heard(stub)
    assert isinstance(message, Tokens)
    assert (message.request, message.finish_reason) == (2, "length")
    assert "submit_failed model=m error=KeyError" in caplog.text
    assert SECRET not in caplog.text


def test_a_request_that_no_engine_could_serve_is_the_clients_fault(bench: Bench):
    stub = bench.serve()
    stub.send(prompt(1, max_tokens=-1))
    message = heard(stub)
    assert isinstance(message, Failed)
    assert message.code == "INVALID_ARGUMENT"


def test_a_worker_without_its_stub_stops(bench: Bench):
    bench.serve().close()
    assert bench.ended()


def test_a_worker_whose_stub_says_what_nobody_can_parse_stops(bench: Bench):
    """Alive and deaf it would hear no request and no cancellation any more."""
    stub, body = bench.serve(), b"[" * 200_000
    stub._socket.sendall(len(body).to_bytes(4, "little") + body)
    assert bench.ended()


def test_a_worker_that_listens_no_more_stops_whatever_the_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def break_down(*_: object) -> None:
        raise ZeroDivisionError

    broke_down = threading.Event()
    monkeypatch.setattr(StubLink, "listen", break_down)
    monkeypatch.setattr(threading, "excepthook", lambda _: broke_down.set())
    bench.serve()
    assert bench.ended()
    assert broke_down.wait(WAIT_S)


def test_a_cancelled_request_ends(bench: Bench):
    stub = bench.serve()
    stub.send(prompt(1, max_tokens=50))
    assert bench.engine.stepping.wait(WAIT_S)
    bench.ask(Cancel(request=1))
    for _ in range(50):
        bench.engine.steps.put(None)
    while True:
        message = heard(stub)
        assert isinstance(message, Tokens)
        if message.finish_reason is not None:
            break
    assert message.finish_reason == "cancelled"


def resumed(request: int, *ids: int, reservation: str | None = None, attempt: int = 0) -> Generate:
    sampling = {"max_tokens": 20, "ignore_eos": True}
    return Generate(
        request=request,
        attempt=attempt,
        text="hi",
        resume_token_ids=list(ids),
        sampling_parameters=sampling,
        reservation=reservation,
    )


def catch_up(request: int, *ids: int, start: int = 0, attempt: int = 1) -> CatchUp:
    sampling = {"max_tokens": 20, "ignore_eos": True}
    return CatchUp(
        request=request,
        reservation="s",
        attempt=attempt,
        start_position=start,
        text="hi",
        resume_token_ids=list(ids),
        sampling_parameters=sampling,
    )


def test_a_round_is_answered_with_what_is_held_and_the_next_goes_on_from_there(bench: Bench):
    stub = bench.serve()
    for _ in range(4):
        bench.engine.steps.put(None)
    stub.send(catch_up(1, 97, 98))
    assert heard_to_the_end(stub)[-1] == CaughtUp(request=1, held_tokens=4)
    stub.send(catch_up(2, 99, start=2))
    assert heard_to_the_end(stub)[-1] == CaughtUp(request=2, held_tokens=5)


def test_a_round_that_leaves_a_gap_is_refused(bench: Bench):
    stub = bench.serve()
    stub.send(catch_up(1, 97, start=3))
    (refused,) = heard_to_the_end(stub)
    assert isinstance(refused, Failed)
    assert refused.code == "INVALID_ARGUMENT"


def test_what_was_caught_up_is_gone_on_from_once(bench: Bench):
    stub = bench.serve()
    for _ in range(100):
        bench.engine.steps.put(None)
    stub.send(catch_up(1, 97, 98))
    heard_to_the_end(stub)
    stub.send(resumed(2, 97, 98, reservation="s", attempt=1))
    tokens = [message for message in heard_to_the_end(stub) if isinstance(message, Tokens)]
    assert (tokens[0].first_position, tokens[-1].finish_reason) == (2, "length")
    stub.send(resumed(3, 97, 98, reservation="s", attempt=1))
    (refused,) = heard_to_the_end(stub)
    assert isinstance(refused, Failed)
    assert refused.code == "INVALID_ARGUMENT"


def test_a_frozen_request_ends_with_a_state_that_goes_on_where_it_ended(bench: Bench):
    stub = bench.serve()
    stub.send(replace(prompt(1, max_tokens=20), deadline_unix_s=1_800_000_000))
    bench.engine.steps.put(None)
    first = heard(stub)
    assert isinstance(first, Tokens)
    bench.ask(Freeze(request=1))
    for _ in range(100):
        bench.engine.steps.put(None)
    tokens = [m for m in heard_to_the_end(stub) if isinstance(m, Tokens)]
    assert tokens[-1].finish_reason == "frozen"
    state = parse_token_state(tokens[-1].token_state or "")
    assert list(state.output_ids) == [*first.output_ids, *(i for m in tokens for i in m.output_ids)]
    assert bytes(state.prompt_ids).decode() == SECRET
    assert (state.resume_parameters["max_tokens"], state.deadline_unix_s) == (20, 1_800_000_000)


def test_a_frozen_request_whose_state_is_over_a_bound_fails_instead(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_state, "MAX_BYTES", 10)
    stub = bench.serve()
    stub.send(prompt(1, max_tokens=20))
    bench.engine.steps.put(None)
    assert isinstance(heard(stub), Tokens)
    bench.ask(Freeze(request=1))
    for _ in range(100):
        bench.engine.steps.put(None)
    last = heard_to_the_end(stub)[-1]
    assert isinstance(last, Failed)
    assert (last.request, last.code) == (1, "UNAVAILABLE")
    assert "without a token state: a token state of" in last.message
    assert SECRET not in last.message


def test_a_request_that_has_ended_is_not_frozen(bench: Bench):
    stub = bench.serve()
    for _ in range(100):
        bench.engine.steps.put(None)
    stub.send(prompt(1))
    heard_to_the_end(stub)
    stub.send(Freeze(request=1))
    stub.send(prompt(2, max_tokens=1))
    (last,) = heard_to_the_end(stub)
    assert isinstance(last, Tokens)
    assert (last.request, last.finish_reason) == (2, "length")


def test_reservations_expire_and_figures_are_told_when_time_has_passed(bench: Bench):
    stub = bench.serve()
    expired: queue.Queue[float] = queue.Queue()
    bench.engine.expire = expired.put  # type: ignore[method-assign]
    stub.send(prompt(1, max_tokens=20))
    assert bench.engine.stepping.wait(WAIT_S)
    bench.now_s = TICK_S
    bench.engine.steps.put(None)
    assert expired.get(timeout=WAIT_S) == TICK_S
    (told,) = [message for message in (stub.receive()[0], stub.receive()[0]) if isinstance(message, Stats)]
    assert (told.running, told.steps) == (1, 1)


def test_figures_that_have_not_changed_are_not_told_again(bench: Bench):
    stub = bench.serve()
    for ticks in (1, 2):
        before = bench.worker._ticked_s
        bench.now_s = ticks * TICK_S
        stub.send(Cancel(request=99))  # of nothing: it only wakes the worker
        while bench.worker._ticked_s == before:
            os.sched_yield()
    assert isinstance(stub.receive()[0], Stats)
    stub.set_timeout(0.1)
    with pytest.raises(TimeoutError):
        stub.receive()


class Link:
    """A stub link with its clock in the test's hand; `flush` returns once it has heard everything sent to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.stub, self.now_s = Channel(ours), 0.0
        self.stub.set_timeout(WAIT_S)
        self.link = StubLink(Channel(theirs), lambda: self.now_s)
        self.heard: queue.Queue[Asked] = queue.Queue()
        self.thread = threading.Thread(target=self.link.listen, args=(self.heard.put,))
        self.thread.start()

    def send(self, message: Generate) -> None:
        self.stub.send(message)
        assert self.heard.get(timeout=WAIT_S) == message

    def quiet(self) -> bool:
        """Whether nothing lies in the stub's socket: the next message is one sent only now."""
        self.link.say(Failed(request=99, code="INTERNAL", message=""))
        return heard(self.stub) == Failed(request=99, code="INTERNAL", message="")


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link()
    yield link
    link.stub.close()
    link.thread.join(WAIT_S)
    link.link._channel.close()


def test_a_request_that_no_step_has_taken_up_yet_is_heard_of(link: Link):
    link.send(Generate(request=1, text="x", resume_token_ids=[5, 6]))
    link.now_s = SIGN_OF_LIFE_S - 1
    link.link.beat()
    assert link.quiet()
    link.now_s = SIGN_OF_LIFE_S
    link.link.beat()
    assert heard(link.stub) == Tokens(request=1, first_position=2, output_ids=[], text="", num_input_tokens=0)


def test_a_request_that_was_just_heard_of_or_has_ended_needs_no_heartbeat(link: Link):
    for number in (1, 2):
        link.send(Generate(request=number, text="x"))
    link.now_s = SIGN_OF_LIFE_S
    link.link.say(Tokens(request=1, first_position=0, output_ids=[7], text="a", num_input_tokens=1))
    link.link.say(Failed(request=2, code="INTERNAL", message=""))
    assert [heard(link.stub).request for _ in range(2)] == [1, 2]
    link.link.beat()
    assert link.quiet()
    link.now_s += SIGN_OF_LIFE_S
    link.link.beat()
    assert heard(link.stub) == Tokens(request=1, first_position=1, output_ids=[], text="", num_input_tokens=0)


def test_a_position_is_a_sign_of_life_and_moves_nothing(link: Link):
    link.send(Generate(request=1, text="x", resume_token_ids=[5, 6]))
    link.now_s = SIGN_OF_LIFE_S
    position = Position(request=1, state="queued", held_tokens=0, total_tokens=9)
    link.link.say(position)
    assert link.stub.receive()[0] == position
    link.link.beat()
    assert link.quiet()
    link.now_s += SIGN_OF_LIFE_S
    link.link.beat()
    assert heard(link.stub) == Tokens(request=1, first_position=2, output_ids=[], text="", num_input_tokens=0)


def test_whoever_speaks_does_not_wait_for_a_stub_that_takes_nothing(link: Link):
    """More than any socket buffer holds; what the stub had not taken yet comes as fewer, longer messages."""
    count, text = 1000, "x" * 1000
    for position in range(count):
        link.link.say(Tokens(request=1, first_position=position, output_ids=[position], text=text, num_input_tokens=1))
    ids: list[int] = []
    messages = 0
    while len(ids) < count:
        message = heard(link.stub)
        assert isinstance(message, Tokens)
        assert message.first_position == len(ids)
        assert len(message.text) == len(text) * len(message.output_ids)
        ids += message.output_ids
        messages += 1
    assert ids == list(range(count))
    assert messages < count


def test_a_worker_whose_engine_hangs_gives_no_sign_of_life(bench: Bench, link: Link):
    stub = bench.serve()
    stub.send(prompt(1))
    assert bench.engine.stepping.wait(WAIT_S)
    link.send(prompt(2))
    bench.now_s = link.now_s = STUCK_S - 1
    bench.worker._beat(link.link)
    assert heard(link.stub).request == 2
    bench.now_s = link.now_s = STUCK_S
    bench.worker._beat(link.link)
    assert link.quiet()


def test_a_link_whose_stub_is_gone_says_so(link: Link):
    link.stub.close()
    link.thread.join(WAIT_S)
    with pytest.raises(ChannelClosed):
        link.link.say(Failed(request=1, code="INTERNAL", message=""))
