"""An engine worker: forked idle, given one model, serves one stub, leaves.

The main thread owns the engine and takes its steps; a thread per socket only turns messages into commands. A worker is
used once: whatever ends its stub's connection ends it, and the memory it held goes with the process.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from serverless_triton.backend.channel import Channel, ChannelClosed
from serverless_triton.backend.engines.protocol import (
    Engine,
    EngineError,
    EngineEvent,
    FailureEvent,
    GenerationRequest,
    InvalidRequest,
)
from serverless_triton.backend.engines.registry import EngineRegistry
from serverless_triton.backend.messages import (
    Cancel,
    Failed,
    Generate,
    Load,
    Loaded,
    Message,
    ModelSpec,
    ProtocolError,
    Retire,
    Serve,
    Span,
    Tokens,
    WorkerHello,
)
from serverless_triton.loader.errors import CheckpointError, LoaderError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from serverless_triton.loader.client import Attachment, Store

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
RECONNECT_S = 0.1
STORE_TIMEOUT_S = 600.0

HEARTBEAT_S = 5.0

Command = Callable[[], None]


class SpanRecorder:
    """The stretches of one load, on this host's monotonic clock."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.spans.append((name, start, time.monotonic()))


class Worker:
    """The life of one worker process."""

    def __init__(self, engines: EngineRegistry, agent_socket: Path, store_socket: Path) -> None:
        self._engines = engines
        self._agent_socket = agent_socket
        self._store_socket = store_socket
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._hello: WorkerHello | None = WorkerHello()  # None while loading: nothing that another agent could adopt
        self._engine: Engine | None = None
        self._store: Store | None = None
        self._stub: Channel | None = None
        self._stopping = False
        self._positions: dict[int, tuple[int, float]] = {}  # request → next position, when its stub last heard of it

    def run(self) -> None:
        """Until retired or the stub's connection ends."""
        self._agent = Channel.connect(str(self._agent_socket), CONNECT_TIMEOUT_S)
        self._agent.send(WorkerHello())
        threading.Thread(target=self._listen_to_agent, daemon=True).start()
        while not self._stopping:
            self._obey()
            if self._engine is not None and self._engine.has_work:
                self._step(self._engine)

    def _obey(self) -> None:
        """Run what has been asked; wait for it only when there is nothing to compute."""
        idle = self._engine is None or not self._engine.has_work
        try:
            self._commands.get(block=idle)()
            while True:
                self._commands.get_nowait()()
        except queue.Empty:
            pass  # everything asked so far is done

    def _step(self, engine: Engine) -> None:
        for event in engine.step():
            message = _message(event)
            self._note_position(message)
            self._send_to_stub(message)

    def _note_position(self, message: Tokens | Failed) -> None:
        if isinstance(message, Failed) or message.finish_reason is not None:
            self._positions.pop(message.request, None)
        else:
            next_position = message.first_position + len(message.output_ids)
            self._positions[message.request] = (next_position, time.monotonic())

    def _heartbeat(self) -> None:
        """For requests that are queued or in a long prefill: an empty message says that this process still runs."""
        while True:
            time.sleep(HEARTBEAT_S)
            now_s = time.monotonic()
            for request, (position, heard_s) in list(self._positions.items()):
                if now_s - heard_s >= HEARTBEAT_S:
                    self._send_to_stub(
                        Tokens(request=request, first_position=position, output_ids=[], text="", num_input_tokens=0)
                    )

    # The agent's socket

    def _listen_to_agent(self) -> None:
        while True:
            try:
                message, descriptors = self._agent.receive()
            except (ChannelClosed, ProtocolError, OSError):
                self._reconnect()
                continue
            self._commands.put(self._command_of_agent(message, descriptors))

    def _command_of_agent(self, message: Message, descriptors: list[int]) -> Command:
        if isinstance(message, Load):
            return lambda: self._load(message)
        if isinstance(message, Serve) and descriptors:
            return lambda: self._serve(Channel.adopt(descriptors[0]))
        if isinstance(message, Retire):
            return self._stop
        return lambda: logger.error("unexpected_message type=%s", type(message).__name__)

    def _reconnect(self) -> None:
        """A new agent adopts this worker from its hello."""
        hello = self._hello
        if hello is None:
            os._exit(1)
        time.sleep(RECONNECT_S)
        try:
            self._agent = Channel.connect(str(self._agent_socket), CONNECT_TIMEOUT_S)
            self._agent.send(hello)
        except (ChannelClosed, OSError):
            return  # not back yet; the caller asks again

    def _tell_agent(self, message: Message) -> None:
        try:
            self._agent.send(message)
        except ChannelClosed:
            logger.warning("agent_away message=%s", type(message).__name__)  # the next hello tells it

    def _stop(self) -> None:
        self._stopping = True

    # Becoming a model's engine

    def _load(self, message: Load) -> None:
        self._hello = None
        recorder = SpanRecorder()
        try:
            spec = ModelSpec.parse(message.parameters)
            attachment = self._build(spec, recorder)
        except (ValueError, EngineError, CheckpointError) as error:
            self._refuse(message, "INVALID_ARGUMENT", error)
        except (LoaderError, OSError, MemoryError) as error:
            self._refuse(message, "UNAVAILABLE", error)
        else:
            self._hello = WorkerHello(replica=message.replica, model=message.model, parameters=message.parameters)
            receipt = attachment.receipt
            self._tell_agent(
                Loaded(replica=message.replica, tier=receipt.tier, bytes=receipt.bytes, spans=recorder.spans)
            )

    def _refuse(self, message: Load, code: str, error: Exception) -> None:
        self._tell_agent(Failed(code=code, message=f"failed to load '{message.model}': {error}"))
        self._stop()

    def _build(self, spec: ModelSpec, recorder: SpanRecorder) -> Attachment:
        """The store fetches the weights while this thread prepares what needs none."""
        import torch

        torch.set_num_threads(spec.threads)
        builder = self._engines.builder(spec.engine)
        with ThreadPoolExecutor(max_workers=1) as pool:
            weights: Future[Attachment] = pool.submit(self._attach, spec, recorder)
            with recorder.span("worker.skeleton"):
                builder.learn(spec.checkpoint, spec.dtype)
            attachment = weights.result()
        with recorder.span("worker.engine"):
            self._engine = builder.build(
                spec.checkpoint,
                attachment.tensors,
                dtype=spec.dtype,
                max_sequence_tokens=spec.max_sequence_tokens,
                max_streams=spec.max_streams,
            )
        return attachment

    def _attach(self, spec: ModelSpec, recorder: SpanRecorder) -> Attachment:
        from serverless_triton.loader.client import Store

        with recorder.span("store.load"):
            self._store = Store(self._store_socket, timeout_s=STORE_TIMEOUT_S)  # its connection is the lease
            return self._store.attach(Path(spec.checkpoint))

    # The stub's socket

    def _serve(self, stub: Channel) -> None:
        self._stub = stub
        threading.Thread(target=self._heartbeat, daemon=True).start()
        threading.Thread(target=self._listen_to_stub, args=(stub,), daemon=True).start()

    def _listen_to_stub(self, stub: Channel) -> None:
        try:
            while True:
                message, _ = stub.receive()
                if isinstance(message, Generate):
                    self._commands.put(lambda m=message: self._submit(m))  # type: ignore[misc]
                elif isinstance(message, Cancel):
                    self._commands.put(lambda m=message: self._cancel(m))  # type: ignore[misc]
        except (ChannelClosed, ProtocolError, OSError):
            self._commands.put(self._stop)

    def _submit(self, message: Generate) -> None:
        if self._engine is None:
            self._send_to_stub(Failed(request=message.request, code="UNAVAILABLE", message="the engine is not loaded"))
            return
        request = GenerationRequest(
            request=message.request,
            text=message.text,
            input_ids=message.input_ids,
            resume_token_ids=message.resume_token_ids,
            sampling_parameters=message.sampling_parameters,
        )
        try:
            self._engine.submit(request)
            self._positions[message.request] = (len(message.resume_token_ids), time.monotonic())
        except InvalidRequest as error:
            self._send_to_stub(Failed(request=message.request, code="INVALID_ARGUMENT", message=str(error)))

    def _cancel(self, message: Cancel) -> None:
        if self._engine is not None:
            self._engine.cancel(message.request)

    def _send_to_stub(self, message: Message) -> None:
        if self._stub is None:
            return
        try:
            self._stub.send(message)
        except ChannelClosed:
            self._stop()


def _message(event: EngineEvent) -> Tokens | Failed:
    if isinstance(event, FailureEvent):
        return Failed(request=event.request, code=event.code, message=event.message)
    return Tokens(
        request=event.request,
        first_position=event.first_position,
        output_ids=list(event.output_ids),
        text=event.text,
        num_input_tokens=event.num_input_tokens,
        prompt_ids=None if event.prompt_ids is None else list(event.prompt_ids),
        finish_reason=event.finish_reason,
    )
