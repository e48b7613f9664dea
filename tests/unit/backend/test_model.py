"""The stub, with Triton and the worker played by hand: a fake `triton_python_backend_utils`, a socketpair's far end."""

from __future__ import annotations

import importlib
import json
import queue
import socket
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from serverless_triton.backend.channel import Channel
from serverless_triton.backend.messages import Acquire, Attached, Cancel, Failed, Generate, Granted, Tokens

WAIT_S = 10.0
FINAL = 1


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


class Sender:
    """Implements Triton's response sender: it takes nothing after the final response."""

    def __init__(self) -> None:
        self.sent: queue.Queue[tuple[InferenceResponse, int]] = queue.Queue()
        self.is_final = False
        self.cancelled = False
        self.breaks = False

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        if self.is_final:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        self.is_final = flags == FINAL
        if self.breaks and response.error is None:
            raise TritonModelException("Failed to send.")
        self.sent.put((response, flags))

    def is_cancelled(self) -> bool:
        return self.cancelled

    def next(self) -> tuple[InferenceResponse, int]:
        return self.sent.get(timeout=WAIT_S)


class Request:
    def __init__(self, text: str, token_state: bool = False) -> None:
        self.sender = Sender()
        self.token_state = token_state
        self.tensors = {"text_input": Tensor("text_input", np.array([text.encode()], dtype=np.object_))}

    def get_response_sender(self) -> Sender:
        return self.sender

    def parameters(self) -> str:
        return json.dumps({"attempt": 3, "token_state": self.token_state})


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

    def tokens(self, request: int, text: str, finish_reason: str | None = None) -> None:
        self.worker.send(
            Tokens(
                request=request,
                first_position=0,
                output_ids=[1],
                text=text,
                num_input_tokens=1,
                finish_reason=finish_reason,
            )
        )


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    utils: Any = ModuleType("triton_python_backend_utils")
    for kind in (Tensor, TritonError, TritonModelException, InferenceResponse, Logger):
        setattr(utils, kind.__name__, kind)
    utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    utils.get_input_tensor_by_name = lambda request, name: request.tensors.get(name)
    Logger.lines = queue.Queue()
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
    config = {"parameters": {"checkpoint": {"string_value": "/models/a"}}}
    model.initialize({"model_name": "m", "model_config": json.dumps(config)})
    made = Stub(module, model, agent, Channel(worker))
    yield made
    model.finalize()
    made.worker.close()
    agent.close()
    monkeypatch.delitem(sys.modules, "serverless_triton.backend.model", raising=False)


def test_a_stub_asks_for_its_model_and_relays_what_the_worker_says(stub: Stub):
    assert stub.agent.receive()[0] == Acquire(model="m", parameters={"checkpoint": "/models/a"})
    number, sender = stub.submit()
    stub.tokens(number, "one")
    stub.tokens(number, " two", finish_reason="stop")
    responses = [sender.next() for _ in range(2)]
    assert [(response.text, flags) for response, flags in responses] == [("one", 0), (" two", FINAL)]
    assert responses[0][0].tensors["attempt"][0] == 3


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
