"""The stub, with Triton and the worker played by hand: a fake `triton_python_backend_utils`, a socketpair's far end."""

from __future__ import annotations

import importlib
import json
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serverless_triton.backend.channel import Channel
from serverless_triton.backend.messages import (
    Acquire,
    Attached,
    Cancel,
    CatchUp,
    CaughtUp,
    Failed,
    Freeze,
    Generate,
    Granted,
    Loaded,
    Position,
    Tokens,
)

WAIT_S = 10.0
FINAL = 1
OUTPUTS = [{"name": "text_output"}, {"name": "output_ids"}, {"name": "finish_reason"}]


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> Any:
        return self.array


class TritonError:
    INVALID_ARG, NOT_FOUND, UNAVAILABLE, CANCELLED, INTERNAL = (
        "INVALID_ARG",
        "NOT_FOUND",
        "UNAVAILABLE",
        "CANCELLED",
        "INTERNAL",
    )

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class TritonModelException(Exception):
    pass


class InferenceResponse:
    made: Callable[[], None] = staticmethod(lambda: None)  # called by each one that carries tensors

    def __init__(self, tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.tensors = {tensor.name: tensor.array for tensor in tensors or []}
        self.error = error
        if tensors is not None:
            InferenceResponse.made()

    @property
    def text(self) -> str:
        return str(self.tensors["text_output"][0].decode())


class MetricFamily:
    """Triton's, taking everything; what is written there is test_stub_metrics's."""

    COUNTER, GAUGE = "counter", "gauge"
    written: queue.Queue[tuple[str, dict[str, str], float]]

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str]) -> Any:  # noqa: N802 - Triton's name
        def write(value: float) -> None:
            MetricFamily.written.put((self.name, labels, value))

        return SimpleNamespace(increment=write, set=write)


class Sender:
    """Implements Triton's response sender: it takes nothing after the final response."""

    def __init__(self) -> None:
        self.sent: queue.Queue[tuple[InferenceResponse, int]] = queue.Queue()
        self.is_final = False
        self.cancelled = False
        self.breaks = False
        self.opened = threading.Event()  # cleared, Triton is slow
        self.opened.set()
        self.waits = threading.Event()

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        if self.is_final:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        self.is_final = flags == FINAL
        self.waits.set()
        assert self.opened.wait(WAIT_S)
        if self.breaks and response.error is None:
            raise TritonModelException("Failed to send.")
        self.sent.put((response, flags))

    def is_cancelled(self) -> bool:
        return self.cancelled

    def next(self) -> tuple[InferenceResponse, int]:
        return self.sent.get(timeout=WAIT_S)


class Request:
    """A streamed one, as its client's Triton sees it."""

    def __init__(self, text: str, token_state: bool = False, **parameters: Any) -> None:
        self.sender = Sender()
        self.token_state = token_state
        self.more = parameters
        self.tensors = {"text_input": Tensor("text_input", np.array([text.encode()], dtype=np.object_))}
        self.tensors["stream"] = Tensor("stream", np.array([True]))

    def get_response_sender(self) -> Sender:
        return self.sender

    def request_id(self) -> str:
        return "stream-1"

    def requested_output_names(self) -> list[str]:
        return [output["name"] for output in OUTPUTS]

    def parameters(self) -> str:
        return json.dumps({"attempt": 3, "token_state": self.token_state, **self.more})


class Logger:
    lines: queue.Queue[str]

    @classmethod
    def log_error(cls, line: str) -> None:
        cls.lines.put(line)


class Stub:
    """The model under test, and the far end of its socket to the worker."""

    def __init__(self, module: Any, model: Any, agent: Channel, worker: Channel) -> None:
        self.module, self.model, self.agent, self.worker = module, model, agent, worker

    def submit(self, text: str = "a prompt", *, token_state: bool = False) -> tuple[int, Sender]:
        """The number that the worker knows the request by, and what its client hears from."""
        request = Request(text, token_state)
        self.model.execute([request])
        message, _ = self.worker.receive()
        assert isinstance(message, Generate)
        return message.request, request.sender

    def lose_worker(self) -> None:
        """The worker's end closes, and what is in flight has failed."""
        _, sender = self.submit()
        self.worker.close()
        sender.next()

    def wake(self, replica: str) -> None:
        """The agent sends another worker."""
        theirs, worker = socket.socketpair()
        self.agent.send(Granted(replica=replica), [theirs.fileno()])
        theirs.close()
        self.worker = Channel(worker)

    def tokens(self, request: int, text: str, finish_reason: str | None = None, at: int = 0) -> None:
        self.worker.send(
            Tokens(
                request=request,
                first_position=at,
                output_ids=[1],
                text=text,
                num_input_tokens=1,
                finish_reason=finish_reason,
            )
        )


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    utils: Any = ModuleType("triton_python_backend_utils")
    for kind in (Tensor, TritonError, TritonModelException, InferenceResponse, Logger, MetricFamily):
        setattr(utils, kind.__name__, kind)
    utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    utils.get_input_tensor_by_name = lambda request, name: request.tensors.get(name)
    Logger.lines = queue.Queue()
    MetricFamily.written = queue.Queue()
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    monkeypatch.delitem(sys.modules, "serverless_triton.backend.model", raising=False)
    module = importlib.import_module("serverless_triton.backend.model")
    ours, agent = (Channel(end) for end in socket.socketpair())
    theirs, worker = socket.socketpair()
    agent.send(Granted(replica="r1"), [theirs.fileno()])
    theirs.close()
    monkeypatch.setattr(InferenceResponse, "made", staticmethod(lambda: None))
    monkeypatch.setattr(module.Channel, "connect", lambda path, timeout_s: ours)
    monkeypatch.setenv(module.AGENT_SOCKET_VARIABLE, "/nowhere")
    model = module.TritonPythonModel()
    config = {"parameters": {"checkpoint": {"string_value": "/models/a"}}, "output": OUTPUTS}
    monkeypatch.setattr(module, "PUBLISH_S", 0.01)
    model.initialize({"model_name": "m", "model_config": json.dumps(config)})
    made = Stub(module, model, agent, Channel(worker))
    yield made
    model.finalize()
    made.worker.close()
    agent.close()
    monkeypatch.delitem(sys.modules, "serverless_triton.backend.model", raising=False)


def test_a_stub_asks_for_its_model_and_relays_what_the_worker_says(stub: Stub):
    assert stub.agent.receive()[0] == Acquire(model="m", parameters={"checkpoint": "/models/a"})
    number, sender = stub.submit(token_state=True)
    stub.tokens(number, "one")
    first, flags = sender.next()
    assert (first.text, flags, first.tensors["attempt"][0]) == ("one", 0, 3)
    stub.tokens(number, " two", finish_reason="stop", at=1)
    last, flags = sender.next()
    assert (last.text, flags) == (" two", FINAL)


def test_tokens_that_come_while_triton_is_busy_are_one_response(stub: Stub):
    number, sender = stub.submit(token_state=True)
    sender.opened.clear()
    stub.tokens(number, "one")
    assert sender.waits.wait(WAIT_S)
    for position, text in enumerate((" two", " three", " four"), start=1):
        stub.tokens(number, text, at=position)
    stub.worker.send(Loaded(replica="r1", tier="dram", bytes=1, spans=[("x", 0.0, 1.0)]))
    while MetricFamily.written.get(timeout=WAIT_S)[0] != "serverless_triton_engine_start_span_seconds":
        pass  # the last message has been read, so those before it wait in the stub
    sender.opened.set()
    assert sender.next()[0].text == "one"
    response, flags = sender.next()
    assert (response.text, response.tensors["output_ids"].tolist(), flags) == (" two three four", [1, 1, 1], 0)
    assert response.tensors["first_position"].tolist() == [1]


def test_a_client_that_does_not_stream_gets_one_response(stub: Stub):
    request = Request("Say ")
    del request.tensors["stream"]
    stub.model.execute([request])
    message, _ = stub.worker.receive()
    assert isinstance(message, Generate)
    stub.tokens(message.request, "one")
    stub.tokens(message.request, " two", finish_reason="stop", at=1)
    response, flags = request.sender.next()
    assert (response.text, flags) == ("Say one two", FINAL)
    assert set(response.tensors) == {"text_output"}


def test_a_queued_request_is_heard_of_by_the_gateway_and_by_nobody_else(stub: Stub):
    gateway, gateway_sender = stub.submit(token_state=True)
    client, client_sender = stub.submit()
    for number in (client, gateway):
        stub.worker.send(Position(request=number, state="queued", held_tokens=0, total_tokens=9))
    response, flags = gateway_sender.next()
    assert (response.tensors["held_tokens"][0], response.tensors["total_tokens"][0], flags) == (0, 9, 0)
    assert client_sender.sent.empty()


def test_a_round_of_a_catch_up_ends_with_what_is_held(stub: Stub):
    request = Request("x", token_state=True, reservation="s", max_tokens=0, start_position=0)
    stub.model.execute([request])
    message, _ = stub.worker.receive()
    assert isinstance(message, CatchUp)
    stub.worker.send(CaughtUp(request=message.request, held_tokens=12))
    response, flags = request.sender.next()
    assert (response.tensors["held_tokens"][0], response.tensors["finish_reason"][0], flags) == (
        12,
        b"caught_up",
        FINAL,
    )


def test_a_stream_is_frozen_by_its_id_and_ends_with_its_token_state(stub: Stub):
    number, sender = stub.submit(token_state=True)
    asking = Request("", token_state=True, freeze="stream-1")
    stub.model.execute([asking])
    assert stub.worker.receive()[0] == Freeze(request=number)
    assert asking.sender.next()[1] == FINAL
    stub.worker.send(
        Tokens(
            request=number,
            first_position=0,
            output_ids=[],
            text="",
            num_input_tokens=1,
            finish_reason="frozen",
            token_state="{}",
        )
    )
    response, flags = sender.next()
    assert (response.tensors["token_state"][0], flags) == (b"{}", FINAL)


def test_a_stream_that_is_not_here_cannot_be_frozen(stub: Stub):
    asking = Request("", freeze="stream-2")
    stub.model.execute([asking])
    response, flags = asking.sender.next()
    assert response.error is not None
    assert (response.error.code, flags) == ("NOT_FOUND", FINAL)


def test_log_probabilities_are_refused_with_a_reason(stub: Stub):
    request = Request("x")
    request.tensors["return_logprobs"] = Tensor("return_logprobs", np.array([True]))
    stub.model.execute([request])
    response, _ = request.sender.next()
    assert response.error is not None
    assert response.error.code == "INVALID_ARG"
    assert "return_logprobs" in response.error.message


def test_what_a_request_took_is_published_under_the_models_name(stub: Stub):
    number, sender = stub.submit()
    stub.tokens(number, "one")
    stub.tokens(number, " two", finish_reason="stop", at=1)
    while sender.next()[1] != FINAL:
        pass
    written = {}
    expected = {"serverless_triton_engine_requests_total", "serverless_triton_engine_ttft_seconds_count"}
    while not expected <= set(written):
        name, labels, value = MetricFamily.written.get(timeout=WAIT_S)
        written[name] = value
        assert labels["model"] == "m"
    assert [written[name] for name in sorted(expected)] == [1, 1]


def test_a_cancellation_that_overtakes_a_token_ends_that_stream_only(stub: Stub, monkeypatch: pytest.MonkeyPatch):
    number, sender = stub.submit()
    other, other_sender = stub.submit()

    def cancel_now() -> None:
        """Between the look at what is in flight and the sending."""
        if not sender.cancelled:
            sender.cancelled = True
            response, flags = sender.next()
            assert response.error is not None
            assert (response.error.code, flags) == ("CANCELLED", FINAL)

    monkeypatch.setattr(InferenceResponse, "made", staticmethod(cancel_now))
    stub.tokens(number, "late")
    stub.tokens(other, "heard")
    assert other_sender.next()[0].text == "heard"
    assert stub.worker.receive()[0] == Cancel(request=number)
    assert sender.sent.empty()
    assert Logger.lines.empty()


def test_a_response_that_triton_refuses_fails_its_request_and_no_other(stub: Stub):
    number, sender = stub.submit()
    other, other_sender = stub.submit()
    sender.breaks = True
    stub.tokens(number, "lost")
    stub.tokens(other, "heard")
    assert other_sender.next()[0].text == "heard"
    response, flags = sender.next()
    assert response.error is not None
    assert (response.error.code, flags) == ("INTERNAL", FINAL)
    line = Logger.lines.get(timeout=WAIT_S)
    assert "TritonModelException" in line
    assert "lost" not in line


def test_a_message_that_makes_no_tensors_fails_its_request_and_no_other(stub: Stub):
    number, sender = stub.submit()
    other, other_sender = stub.submit()
    stub.worker.send(
        Tokens(request=number, first_position=0, output_ids=[1 << 40], text="", num_input_tokens=1)  # no int32
    )
    stub.tokens(other, "heard")
    assert other_sender.next()[0].text == "heard"
    assert sender.next()[1] == FINAL


def test_a_failure_ends_its_request_with_its_code(stub: Stub):
    number, sender = stub.submit()
    stub.worker.send(Failed(request=number, code="INVALID_ARGUMENT", message="too long"))
    response, flags = sender.next()
    assert response.error is not None
    assert (response.error.code, response.error.message, flags) == ("INVALID_ARG", "too long", FINAL)


def test_a_gateway_gets_failures_as_tensors_because_tritons_error_path_can_crash_the_server(stub: Stub):
    number, sender = stub.submit(token_state=True)
    stub.worker.send(Failed(request=number, code="INVALID_ARGUMENT", message="zu lang: 9 €"))
    response, flags = sender.next()
    assert (response.error, flags) == (None, FINAL)
    assert [part.decode() for part in response.tensors["failure"]] == ["INVALID_ARGUMENT", "zu lang: 9 €"]


def test_a_request_that_is_too_large_for_a_worker_is_the_clients_mistake(stub: Stub, monkeypatch: pytest.MonkeyPatch):
    """UNAVAILABLE would have a gateway try it on one replica after the other, and give up on each."""
    monkeypatch.setattr("serverless_triton.backend.channel.MAX_MESSAGE_BYTES", 200)
    request = Request("long " * 100)
    stub.model.execute([request])
    response, flags = request.sender.next()
    assert (response.error.code, flags) == ("INVALID_ARG", FINAL)
    assert "too large" in response.error.message
    assert stub.submit("short")


def test_a_request_that_cannot_be_read_is_refused_at_once(stub: Stub):
    request = Request("x")
    request.tensors = {}
    stub.model.execute([request])
    response, flags = request.sender.next()
    assert response.error is not None
    assert (response.error.code, flags) == ("INVALID_ARG", FINAL)


@pytest.mark.parametrize("garbage", [b"", b"\x04\x00\x00\x00null"], ids=["closed", "garbage"])
def test_without_a_worker_all_requests_fail_and_so_do_later_ones(stub: Stub, garbage: bytes):
    senders = [stub.submit()[1] for _ in range(2)]
    stub.worker._socket.sendall(garbage)  # what no Channel would send
    if not garbage:
        stub.worker.close()
    for sender in senders:
        response, flags = sender.next()
        assert response.error is not None
        assert (response.error.code, flags) == ("UNAVAILABLE", FINAL)
    later = Request("later")
    stub.model.execute([later])
    response, flags = later.sender.next()
    assert response.error is not None
    assert (response.error.code, flags) == ("UNAVAILABLE", FINAL)


def test_a_parked_stub_takes_the_next_engine_and_says_so(stub: Stub):
    stub.agent.receive()
    stub.lose_worker()
    stub.wake("r2")
    assert stub.agent.receive()[0] == Attached(replica="r2")
    number, sender = stub.submit()
    stub.tokens(number, "again", finish_reason="stop")
    assert sender.next()[0].text == "again"


def test_the_end_of_an_old_engine_fails_nothing_that_the_new_one_serves(stub: Stub):
    stub.agent.receive()
    old_worker = stub.worker
    _, lost = stub.submit()
    stub.wake("r2")
    assert stub.agent.receive()[0] == Attached(replica="r2")
    number, sender = stub.submit()
    old_worker.close()
    response, _ = lost.next()
    assert response.error is not None
    assert response.error.code == "UNAVAILABLE"
    stub.tokens(number, "unharmed", finish_reason="stop")
    assert sender.next()[0].text == "unharmed"


@pytest.mark.parametrize("parked", [False, True])
def test_a_new_agent_hears_whether_the_stub_has_an_engine(stub: Stub, monkeypatch: pytest.MonkeyPatch, parked: bool):
    stub.agent.receive()
    if parked:
        stub.lose_worker()
    ours, agent = (Channel(end) for end in socket.socketpair())
    monkeypatch.setattr(stub.module.Channel, "connect", lambda path, timeout_s: ours)
    stub.agent.close()
    hello = agent.receive()[0]
    assert isinstance(hello, Acquire)
    assert (hello.replica, hello.attached, hello.parked) == ("r1", not parked, parked)
    agent.close()
