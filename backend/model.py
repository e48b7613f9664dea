"""The thin stub inside Triton: relays between Triton's requests and this node's engine worker.

Triton imports this file as the top-level module `model`, in a process of its own per model instance. It asks the node
agent for an engine, gets a connected socket to a worker, and holds nothing else. When that worker leaves, the stub is
parked: it stays READY in Triton without an engine, until the agent sends it the next. Imports nothing heavy: a load is
mostly this start-up.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import triton_python_backend_utils as pb_utils

from serverless_triton.backend.answers import Answer, read_form
from serverless_triton.backend.channel import Channel, ChannelClosed
from serverless_triton.backend.messages import (
    REPLICA_PARAMETER,
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
    Message,
    Position,
    ProtocolError,
    Stats,
    Tokens,
)
from serverless_triton.backend.outbox import News, Outbox
from serverless_triton.backend.stub_metrics import StubMetrics, TritonPublisher
from serverless_triton.backend.triton_tensors import (
    Arrays,
    TensorOf,
    failure_array,
    read_request,
    response_arrays,
    stream_to_freeze,
    wants_token_state,
)

AGENT_SOCKET_VARIABLE = "SERVERLESS_TRITON_AGENT_SOCKET"
AGENT_TIMEOUT_S = 600.0
CANCEL_POLL_S = 0.05
RECONNECT_S = 0.1
PUBLISH_S = 1.0
# gRPC status name → attribute of TritonError, a class that Triton adds to the module only after this file is imported.
_CODES = {
    "INVALID_ARGUMENT": "INVALID_ARG",
    "NOT_FOUND": "NOT_FOUND",
    "UNAVAILABLE": "UNAVAILABLE",
    "CANCELLED": "CANCELLED",
}


def _error(code: str, message: str) -> Any:
    return pb_utils.TritonError(message, getattr(pb_utils.TritonError, _CODES.get(code, "INTERNAL")))


@dataclass
class InFlight:
    """One request between `execute` and its final response, which Triton wants exactly once and last."""

    sender: Any
    worker: Channel
    id: str = ""  # Triton's request id, a gateway's stream
    token_state: bool = False  # for a gateway, which does without an `answer`
    answer: Answer | None = None
    attempt: int = 0
    ended: bool = False
    next_position: int = 0
    heard_s: float = field(default_factory=time.monotonic)  # when its last token came, at first when it came itself
    has_tokens: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def arrays(self, message: Tokens | Position | CaughtUp) -> Arrays | None:
        """The response that this client gets of a message, if any."""
        if self.token_state:
            return response_arrays(message, self.attempt, self.next_position)
        return self.answer.arrays(message) if self.answer is not None and isinstance(message, Tokens) else None

    def send(self, response: Any, final: bool) -> None:
        """Dropped after the final one: a cancellation may overtake what the engine said. Any thread."""
        with self.lock:
            if self.ended:
                return
            self.ended = final
            self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)

    def is_cancelled(self) -> bool:
        """Never asked beside the final response or after it: that takes from under Triton what it looks the answer up
        in, and 2.51 crashes. Any thread.
        """
        with self.lock:
            return not self.ended and bool(self.sender.is_cancelled())

    def fail(self, code: str, message: str) -> None:
        """The last response of a request that failed."""
        if self.token_state:
            tensor = pb_utils.Tensor("failure", failure_array(code, message))
            self.send(pb_utils.InferenceResponse([tensor]), final=True)
        else:
            self.send(pb_utils.InferenceResponse(error=_error(code, message)), final=True)


class TritonPythonModel:
    """What the Python backend calls: `initialize` once, `execute` from one thread, `finalize` once."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._model = args["model_name"]
        self._parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._outputs = frozenset(output["name"] for output in config.get("output", ()))
        self._in_flight: dict[int, InFlight] = {}
        self._lock = threading.Lock()  # guards _in_flight and _next
        self._next = 0
        self._closing = threading.Event()
        self._outbox = Outbox()  # what Triton has not taken yet
        self._metrics = StubMetrics()
        self._gone: Channel | None = None  # the last worker that left; while it is also `_worker`, the stub is parked
        self._attach(self._acquire())
        for work in (self._relay_responses, self._stay_known, self._watch_cancellation):
            threading.Thread(target=work, daemon=True).start()
        publisher = TritonPublisher(pb_utils, self._model, self._replica)
        self._publishing = threading.Thread(target=self._publish_metrics, args=(publisher,), daemon=True)
        self._publishing.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self._take(request, request.get_response_sender())

    def finalize(self) -> None:
        self._closing.set()
        self._worker.close()
        self._agent.close()
        self._outbox.close()
        self._publishing.join(PUBLISH_S)

    def _acquire(self) -> Channel:
        """A channel to this model's worker; the agent's socket stays open, so that each notices the other's end."""
        try:
            self._agent = Channel.connect(os.environ[AGENT_SOCKET_VARIABLE], AGENT_TIMEOUT_S)
        except (KeyError, OSError) as error:
            raise pb_utils.TritonModelException(
                f"model '{self._model}': no node agent to ask for an engine: {error}"
            ) from error
        self._agent.set_timeout(AGENT_TIMEOUT_S)
        self._agent.send(self._acquire_message(self._parameters.get(REPLICA_PARAMETER)))
        answer, descriptors = self._agent.receive()
        if not isinstance(answer, Granted) or not descriptors:
            reason = answer.message if isinstance(answer, Failed) else "the node agent answered out of turn"
            raise pb_utils.TritonModelException(reason)
        self._agent.set_timeout(None)
        self._replica = answer.replica
        return Channel.adopt(descriptors[0])

    def _acquire_message(self, replica: str | None, attached: bool = False, parked: bool = False) -> Acquire:
        return Acquire(
            model=self._model, parameters=self._parameters, replica=replica, attached=attached, parked=parked
        )

    def _attach(self, worker: Channel) -> None:
        """Requests go to this worker from now on."""
        self._worker = worker
        threading.Thread(target=self._hear_worker, args=(worker,), daemon=True).start()

    def _take(self, request: Any, sender: Any) -> None:
        parameters = json.loads(request.parameters() or "{}")
        gateway = wants_token_state(parameters)
        flight = InFlight(sender=sender, worker=self._worker, id=request.request_id(), token_state=gateway)
        try:
            if not flight.token_state:
                flight.answer = Answer(read_form(_tensors_of(request), request.requested_output_names(), self._outputs))
            target = stream_to_freeze(parameters)
            if target is not None:
                self._freeze(flight, target)
                return
            with self._lock:
                self._next += 1
                number = self._next
            message = read_request(number, _tensors_of(request), parameters)
        except ValueError as error:
            self._refuse(flight, "INVALID_ARGUMENT", str(error))
            return
        self._submit(flight, message)

    def _submit(self, flight: InFlight, message: Generate | CatchUp) -> None:
        flight.attempt = message.attempt
        flight.next_position = message.next_position
        with self._lock:
            self._in_flight[message.request] = flight
        try:
            flight.worker.send(message)
        except ProtocolError as error:  # it cannot be said to a worker, and so to no other: not to be tried there
            self._fail(message.request, "INVALID_ARGUMENT", f"a request to model '{self._model}' is refused: {error}")
        except ChannelClosed as error:
            self._fail(message.request, "UNAVAILABLE", f"the engine worker of model '{self._model}' is gone: {error}")

    def _freeze(self, flight: InFlight, target: str) -> None:
        """The stream's own last response brings its token state; this one only says that it will."""
        with self._lock:
            found = [(number, other.worker) for number, other in self._in_flight.items() if other.id == target]
        if not found:
            self._refuse(flight, "NOT_FOUND", f"model '{self._model}' has no stream '{target}' here")
            return
        number, worker = found[-1]
        with contextlib.suppress(ChannelClosed):  # its requests are being failed already
            worker.send(Freeze(request=number))
        flight.send(pb_utils.InferenceResponse([]), final=True)

    def _refuse(self, flight: InFlight, code: str, message: str) -> None:
        self._metrics.ended(code)
        flight.fail(code, message)

    def _hear_worker(self, worker: Channel) -> None:
        """Until the worker is gone; then its requests fail as UNAVAILABLE, which a gateway resumes elsewhere."""
        try:
            while True:
                self._hear(worker.receive()[0])
        except (ChannelClosed, ProtocolError, OSError):
            worker.close()  # after garbage it is still open, and a request sent into it would wait for ever
            self._metrics.engine_left()
            self._gone = worker
            with self._lock:
                numbers = [number for number, flight in self._in_flight.items() if flight.worker is worker]
            why = f"the engine worker of model '{self._model}' died"
            for number in numbers:
                self._outbox.put(Failed(request=number, code="UNAVAILABLE", message=why))

    def _hear(self, message: Message) -> None:
        if isinstance(message, (Tokens, Position, CaughtUp, Failed)):
            self._outbox.put(message)
        elif isinstance(message, Stats):
            self._metrics.engine(message)
        elif isinstance(message, Loaded):
            self._metrics.started(message)

    def _relay_responses(self) -> None:
        """Takes what Triton is ready for; what comes meanwhile for the same request becomes one response."""
        while (news := self._outbox.take()) is not None:
            for message in news:
                self._relay(message)

    def _relay(self, message: News) -> None:
        """What one message does wrong ends its request, never the thread that every stream lives by."""
        try:
            if isinstance(message, Failed):
                self._fail(message.request, message.code, message.message)
            else:
                self._respond(message)
        except Exception as error:  # noqa: BLE001 - numpy, Triton's bindings: each its own exceptions
            _log(f"relay_failed model={self._model} error={type(error).__name__}")
            self._end(message.request, "INTERNAL", f"a response of model '{self._model}' could not be sent")

    def _respond(self, message: Tokens | Position | CaughtUp) -> None:
        with self._lock:
            flight = self._in_flight.get(message.request)
        if flight is None:
            return
        arrays = flight.arrays(message)
        final = isinstance(message, CaughtUp) or (isinstance(message, Tokens) and message.finish_reason is not None)
        if isinstance(message, Tokens):
            self._count(flight, message)
        if arrays is not None or final:
            tensors = [pb_utils.Tensor(name, array) for name, array in arrays or ()]
            flight.send(pb_utils.InferenceResponse(tensors), final)
        if final:
            self._forget(message.request)

    def _count(self, flight: InFlight, message: Tokens) -> None:
        if message.output_ids:
            now_s, count = time.monotonic(), len(message.output_ids)
            if flight.has_tokens:
                self._metrics.next_tokens(now_s - flight.heard_s, count)
            else:
                self._metrics.first_tokens(now_s - flight.heard_s, count, message.num_input_tokens)
            flight.heard_s, flight.has_tokens = now_s, True
            flight.next_position = message.first_position + count
        if message.finish_reason is not None:
            self._metrics.ended(message.finish_reason)

    def _fail(self, number: int, code: str, message: str) -> None:
        flight = self._forget(number)
        if flight is not None:
            self._refuse(flight, code, message)

    def _forget(self, number: int) -> InFlight | None:
        with self._lock:
            return self._in_flight.pop(number, None)

    def _end(self, number: int, code: str, message: str) -> None:
        """Like `_fail`, for where there is nobody left to tell that it went wrong."""
        try:
            self._fail(number, code, message)
        except Exception as error:  # noqa: BLE001 - as in `_relay`
            _log(f"fail_failed model={self._model} error={type(error).__name__}")

    def _stay_known(self) -> None:
        """The agent may send a new engine; one that restarts learns of this stub from the stub itself."""
        while not self._closing.is_set():
            try:
                message, descriptors = self._agent.receive()
                if isinstance(message, Granted) and descriptors:
                    self._wake(message.replica, Channel.adopt(descriptors[0]))
            except (ChannelClosed, ProtocolError, OSError):
                self._reconnect()

    def _wake(self, replica: str, worker: Channel) -> None:
        """Raises ChannelClosed where the agent is gone; the next one hears of the new replica."""
        self._worker.close()
        self._replica = replica
        self._attach(worker)
        self._agent.send(Attached(replica=replica))

    def _reconnect(self) -> None:
        if self._closing.wait(RECONNECT_S):
            return
        self._agent.close()
        try:
            self._agent = Channel.connect(os.environ[AGENT_SOCKET_VARIABLE], AGENT_TIMEOUT_S)
            parked = self._gone is self._worker
            self._agent.send(self._acquire_message(self._replica, attached=not parked, parked=parked))
        except (ChannelClosed, OSError):
            return  # not back yet; the caller asks again

    def _watch_cancellation(self) -> None:
        """Triton has no callback for it."""
        while not self._closing.wait(CANCEL_POLL_S):
            with self._lock:
                flights = list(self._in_flight.items())
            for number, flight in flights:
                self._cancel_if_asked(number, flight)

    def _publish_metrics(self, publisher: TritonPublisher) -> None:
        while not self._closing.wait(PUBLISH_S):
            try:
                publisher.publish(self._metrics.take_changes())
            except Exception as error:  # noqa: BLE001 - Triton's bindings, also where metrics are switched off
                _log(f"metrics_failed model={self._model} error={type(error).__name__}")
                return
        publisher.close()

    def _cancel_if_asked(self, number: int, flight: InFlight) -> None:
        try:
            if not flight.is_cancelled():
                return
        except Exception as error:  # noqa: BLE001 - Triton's bindings; the next poll asks again
            _log(f"cancel_unknown model={self._model} error={type(error).__name__}")
            return
        with contextlib.suppress(ChannelClosed):  # its requests are being failed already
            flight.worker.send(Cancel(request=number))
        self._end(number, "CANCELLED", "the request was cancelled")


def _tensors_of(request: Any) -> TensorOf:
    def tensor(name: str) -> Any:
        found = pb_utils.get_input_tensor_by_name(request, name)
        return None if found is None else found.as_numpy()

    return tensor


def _log(line: str) -> None:
    pb_utils.Logger.log_error(f"serverless_triton {line}")
