"""An engine worker: forked idle, given one model, serves one stub, leaves.

The main thread owns the engine and takes its steps; a thread per socket only turns messages into commands. A worker is
used once: whatever ends its stub's connection ends it, and the memory it held goes with the process. The stub's socket
itself is `worker_stub.py`'s, loading `worker_load.py`'s.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from serverless_triton.backend.channel import Channel, ChannelClosed
from serverless_triton.backend.engines.protocol import (
    Engine,
    EngineError,
    EngineStats,
    InvalidRequest,
    UnknownRequest,
)
from serverless_triton.backend.engines.registry import EngineRegistry
from serverless_triton.backend.messages import (
    Cancel,
    CatchUp,
    Failed,
    Freeze,
    Generate,
    Load,
    Loaded,
    Message,
    ModelSpec,
    ProtocolError,
    Retire,
    Serve,
    Stats,
    WorkerHello,
)
from serverless_triton.backend.outbox import News
from serverless_triton.backend.premapped_store import PremappedStore
from serverless_triton.backend.retirement import RetirementRule, WorkerMemory
from serverless_triton.backend.telemetry import make_provider
from serverless_triton.backend.token_state import TokenStateError, encode_token_state
from serverless_triton.backend.worker_load import LoadedEngine, load_engine
from serverless_triton.backend.worker_spans import WorkerSpans
from serverless_triton.backend.worker_stub import (
    SIGN_OF_LIFE_S,
    Asked,
    StubLink,
    catch_up_of,
    generation_of,
    message_of,
    stats_of,
)
from serverless_triton.loader.errors import CheckpointError, LoaderError

if TYPE_CHECKING:
    from serverless_triton.loader.client import Store

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
RECONNECT_S = 0.1
PREMAP_S = 0.3  # how long the store's arena may keep an idle worker from saying hello
TICK_S = 1.0  # how often reservations may expire and the engine's figures are told
FLUSH_S = 5.0  # how long a worker that gives up waits for its stub to take the last words
STUCK_S = 60.0  # an engine that takes longer over a step has hung; nobody should take it for alive

Command = Callable[[], None]


class Worker:
    """The life of one worker process."""

    def __init__(
        self,
        engines: EngineRegistry,
        agent_socket: Path,
        store_socket: Path,
        clock: Callable[[], float] = time.monotonic,
        retirement: RetirementRule | None = None,
    ) -> None:
        self._retirement = retirement or RetirementRule()
        self._memory: WorkerMemory | None = None  # since the load
        self._engines = engines
        self._agent_socket = agent_socket
        self._premapped = PremappedStore(store_socket)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._hello: WorkerHello | None = WorkerHello()  # None while loading: nothing that another agent could adopt
        self._engine: Engine | None = None
        self._store: Store | None = None  # its connection is the lease
        self._model = ""
        self._loaded: Loaded | None = None
        self._stub: StubLink | None = None
        # What requests whose last event is still to come were frozen into: a token state, or why there is none.
        self._frozen: dict[int, str | Failed] = {}
        self._stats: Stats | None = None  # last told
        self._ticked_s = clock()
        self._stopping = False
        self._spans = WorkerSpans(None)  # until it has a model
        self._clock = clock
        self._turned_s = clock()  # when the main thread last came round

    def run(self) -> None:
        """Until retired or the stub's connection ends."""
        self._premapped.open_ahead(PREMAP_S)
        self._agent = Channel.connect(str(self._agent_socket), CONNECT_TIMEOUT_S)
        self._agent.send(WorkerHello())
        threading.Thread(target=self._listen_to_agent, daemon=True).start()
        while not self._stopping:
            self._obey()
            if self._engine is not None and not self._stopping:
                self._turn(self._engine)
        self._spans.close()

    def _obey(self) -> None:
        """Run what has been asked; wait for it only when there is nothing to compute."""
        self._turned_s = self._clock()
        idle = self._engine is None or not self._engine.has_work
        try:
            command = self._commands.get(block=idle, timeout=None if self._engine is None else TICK_S)
            while True:
                self._turned_s = self._clock()
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            pass  # everything asked so far is done

    def _turn(self, engine: Engine) -> None:
        """A step, where there is work, and once a second what time brings."""
        try:
            events = engine.step() if engine.has_work else []
            self._tick(engine)
        except Exception as error:  # noqa: BLE001 - whatever a model, a kernel or a tokenizer raises
            self._give_up(error)
            return
        for event in events:
            frozen = self._frozen.pop(event.request, None)
            self._tell_stub(frozen if isinstance(frozen, Failed) else message_of(event, frozen))

    def _tick(self, engine: Engine) -> None:
        now_s = self._clock()
        if now_s - self._ticked_s < TICK_S:
            return
        self._ticked_s = now_s
        engine.expire(now_s)
        stats = stats_of(engine.stats())
        if stats != self._stats:
            self._stats = stats
            self._report(stats)

    def _give_up(self, error: Exception) -> None:
        """The engine's state is unknown. INTERNAL, so that nobody repeats elsewhere what may have caused it."""
        logger.error("engine_failed model=%s error=%s at=%s", self._model, type(error).__name__, _place(error))
        self._stop()
        if self._stub is not None:
            with suppress(ChannelClosed):  # nobody is left to tell
                self._stub.fail_all("INTERNAL", self._blame(error))
                self._stub.flush(FLUSH_S)

    def _blame(self, error: Exception) -> str:
        """The exception's own words may hold the prompt; its type doesn't."""
        return f"the engine of model '{self._model}' failed: {type(error).__name__}"

    # The agent's socket

    def _listen_to_agent(self) -> None:
        while True:
            try:
                message, descriptors = self._agent.receive()
            except (ChannelClosed, ProtocolError, OSError):
                if self._stopping:
                    return
                self._reconnect()
                continue
            self._commands.put(self._command_of_agent(message, descriptors))

    def _command_of_agent(self, message: Message, descriptors: list[int]) -> Command:
        if isinstance(message, Load):
            return lambda: self._load(message)
        if isinstance(message, Serve) and descriptors:
            return lambda: self._serve(StubLink(Channel.adopt(descriptors[0]), self._clock))
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
        self._model = message.model
        try:
            spec = ModelSpec.parse(message.parameters)
            self._become(message, load_engine(self._engines, self._premapped, spec, message.shares))
        except (ValueError, EngineError, CheckpointError) as error:
            self._refuse(message, "INVALID_ARGUMENT", error)
        except (LoaderError, OSError, MemoryError) as error:
            self._refuse(message, "UNAVAILABLE", error)
        except Exception as error:
            logger.exception("load_failed model=%s", message.model)
            checkpoint = message.parameters.get("checkpoint")
            self._refuse(message, "INTERNAL", f"{checkpoint}: {type(error).__name__}: {error}")

    def _become(self, message: Load, loaded: LoadedEngine) -> None:
        self._spans = WorkerSpans(make_provider("serverless-triton-worker"))
        self._engine, self._store = loaded.engine, loaded.store
        self._memory = WorkerMemory(tuple(device for device, _, _ in message.shares))
        exactness = asdict(loaded.engine.exactness)
        self._hello = WorkerHello(
            replica=message.replica,
            model=message.model,
            parameters=message.parameters,
            shares=message.shares,
            exactness=exactness,
        )
        self._loaded = Loaded(
            replica=message.replica, tier=loaded.tier, bytes=loaded.bytes, spans=loaded.spans, exactness=exactness
        )
        logger.info(
            "engine_ready model=%s replica=%s exactness=%s reason=%r contract=%s",
            *(message.model, message.replica, exactness["kind"], exactness["reason"], exactness["contract"]),
        )
        self._tell_agent(self._loaded)

    def _refuse(self, message: Load, code: str, reason: object) -> None:
        self._tell_agent(Failed(code=code, message=f"failed to load '{message.model}': {reason}"))
        self._stop()

    # The stub

    def _serve(self, stub: StubLink) -> None:
        self._stub = stub
        if self._loaded is not None:
            self._report(self._loaded)
        threading.Thread(target=self._keep_known, args=(stub,), daemon=True).start()
        threading.Thread(target=self._listen_to_stub, args=(stub,), daemon=True).start()

    def _listen_to_stub(self, stub: StubLink) -> None:
        """Whatever ends the listening ends the worker: one that hears no request any more must not live on."""
        try:
            stub.listen(lambda message: self._commands.put(self._command_of_stub(message)))
        finally:
            self._commands.put(self._stop)

    def _command_of_stub(self, message: Asked) -> Command:
        if isinstance(message, Cancel):
            return lambda: self._cancel(message)
        if isinstance(message, Freeze):
            return lambda: self._freeze(message)
        return lambda: self._submit(message)

    def _keep_known(self, stub: StubLink) -> None:
        with suppress(ChannelClosed):  # `_listen_to_stub` notices too
            while True:
                time.sleep(SIGN_OF_LIFE_S)
                self._beat(stub)
                self._commands.put(self._retire_if_due)

    def _beat(self, stub: StubLink) -> None:
        """Raises ChannelClosed."""
        if self._clock() - self._turned_s < STUCK_S:
            stub.beat()

    def _retire_if_due(self) -> None:
        """The agent ends this worker and parks its stub: nobody uses it, and its memory has gone to pieces."""
        if self._engine is None or self._memory is None or not _is_idle(self._engine.stats()):
            return
        memory = self._memory.now()
        if self._retirement.is_due(memory):
            why = f"retired: it holds {memory.wasted_bytes} bytes beyond the {memory.needed_bytes} that it needs"
            self._tell_agent(Failed(code="UNAVAILABLE", message=f"the engine worker of '{self._model}' {why}"))

    def _submit(self, message: Generate | CatchUp) -> None:
        self._spans.came(message, self._model)
        if self._engine is None:
            self._fail(message, "UNAVAILABLE", "the engine is not loaded")
            return
        try:
            self._ask(self._engine, message)
        except InvalidRequest as error:
            self._fail(message, "INVALID_ARGUMENT", str(error))
        except Exception as error:  # noqa: BLE001 - as in `_turn`, but only this request is touched
            logger.error("submit_failed model=%s error=%s at=%s", self._model, type(error).__name__, _place(error))
            self._fail(message, "INTERNAL", self._blame(error))

    def _ask(self, engine: Engine, message: Generate | CatchUp) -> None:
        if isinstance(message, Generate):
            engine.submit(generation_of(message))
        else:
            engine.catch_up(catch_up_of(message))

    def _cancel(self, message: Cancel) -> None:
        if self._engine is None:
            return
        try:
            self._engine.cancel(message.request)
        except Exception as error:  # noqa: BLE001 - as in `_turn`
            self._give_up(error)

    def _freeze(self, message: Freeze) -> None:
        """A request that has ended meanwhile has said so.

        One whose state cannot be said has ended here all the same: as UNAVAILABLE, to go on elsewhere from a journal.
        """
        if self._engine is None:
            return
        try:
            self._frozen[message.request] = encode_token_state(self._engine.freeze(message.request))
        except UnknownRequest:
            logger.info("freeze_too_late model=%s", self._model)
        except TokenStateError as error:
            logger.error("freeze_failed model=%s error=%s", self._model, error)
            why = f"a request to model '{self._model}' ended without a token state: {error}"
            self._frozen[message.request] = Failed(request=message.request, code="UNAVAILABLE", message=why)
        except Exception as error:  # noqa: BLE001 - as in `_turn`
            self._give_up(error)

    def _fail(self, message: Generate | CatchUp, code: str, reason: str) -> None:
        self._tell_stub(Failed(request=message.request, code=code, message=reason))

    def _tell_stub(self, news: News) -> None:
        self._spans.told(news)
        if self._stub is None:
            return
        try:
            self._stub.say(news)
        except ChannelClosed:
            self._stop()

    def _report(self, message: Stats | Loaded) -> None:
        if self._stub is not None:
            with suppress(ChannelClosed):  # `_listen_to_stub` notices too
                self._stub.report(message)


def _is_idle(stats: EngineStats) -> bool:
    return stats.running + stats.waiting + stats.reserved == 0


def _place(error: Exception) -> str:
    """Where it was raised, as file:line; a log says that instead of words that may hold a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
