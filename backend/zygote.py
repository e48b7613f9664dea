"""The zygote: a warm parent from which engine workers are forked in milliseconds.

It imports torch and transformers, builds skeletons and tokenizers when told to, and forks. It stays single-threaded and
runs no parallel region, batch tokenisation, CUDA call or store connection, because a child forked after any of those
hangs in its own first one. One zygote per engine environment and node; the agent asks it over a unix socket.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import selectors
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serverless_triton.backend.channel import Channel, ChannelClosed
from serverless_triton.backend.engines.registry import EngineRegistry
from serverless_triton.backend.messages import Fork, Learn, ModelSpec, ProtocolError
from serverless_triton.backend.processes import die_with_parent
from serverless_triton.backend.retirement import RetirementRule
from serverless_triton.backend.telemetry import import_ahead
from serverless_triton.backend.worker import Worker

logger = logging.getLogger(__name__)

DEFAULT_ENGINE = "torch"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteConfig:
    """Where the zygote listens, and where its workers find their agent and store."""

    socket: Path
    agent_socket: Path
    store_socket: Path
    retirement: RetirementRule = field(default_factory=RetirementRule)


class Zygote:
    """One listening socket, the agents connected to it, and the engine builders that children inherit."""

    def __init__(self, config: ZygoteConfig) -> None:
        self._config = config
        self._engines = EngineRegistry()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def run(self) -> None:
        """Until SIGTERM."""
        self._engines.builder(DEFAULT_ENGINE)
        signal.signal(signal.SIGCHLD, _reap)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        self._listen()
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._serve(key.data)

    def _listen(self) -> None:
        self._config.socket.unlink(missing_ok=True)
        self._listener.bind(str(self._config.socket))
        self._config.socket.chmod(0o600)
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        channel = Channel(connection)
        self._selector.register(channel, selectors.EVENT_READ, channel)

    def _serve(self, channel: Channel) -> None:
        try:
            message, _ = channel.receive()
        except (ChannelClosed, ProtocolError, OSError):
            self._selector.unregister(channel)
            channel.close()
            return
        if isinstance(message, Fork):
            self._fork()
        elif isinstance(message, Learn):
            self._learn(message)

    def _learn(self, message: Learn) -> None:
        try:
            spec = ModelSpec.parse(message.parameters)
            self._engines.builder(spec.engine).learn(spec.directory, spec.dtype)
        except Exception as error:  # noqa: BLE001 - whatever a checkpoint provokes; the worker that loads it reports it
            logger.warning("learn_failed checkpoint=%s error=%s", message.parameters.get("checkpoint"), error)

    def _fork(self) -> None:
        # What is alive now is never collected in a child: a full collection there would touch, and so copy, all of it.
        gc.collect()
        gc.freeze()
        parent = os.getpid()
        try:
            child = os.fork()
        except OSError as error:  # no memory or process left for it; the agent asks again, and the workers live on
            logger.error("fork_failed error=%s", error)
            return
        if child == 0:
            self._become_worker(parent)

    def _become_worker(self, parent: int) -> None:
        status = 1
        try:
            die_with_parent(parent)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._leave_sockets()
            config = self._config
            Worker(self._engines, config.agent_socket, config.store_socket, retirement=config.retirement).run()
            status = 0
        except BaseException:
            logger.exception("worker_crashed pid=%d", os.getpid())
        finally:
            os._exit(status)

    def _leave_sockets(self) -> None:
        """A worker keeps none of its zygote's connections open: their end is how an agent hears of the zygote's."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Channel):
                key.data.leave()
        self._selector.close()
        self._listener.close()


def _reap(*_: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass  # no child left


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fork warm engine workers for this node's agent.")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--agent-socket", type=Path, required=True)
    parser.add_argument("--store-socket", type=Path, required=True)
    parser.add_argument("--worker-waste-bytes", type=int, default=RetirementRule().waste_bytes)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    config = ZygoteConfig(
        socket=options.socket,
        agent_socket=options.agent_socket,
        store_socket=options.store_socket,
        retirement=RetirementRule(waste_bytes=options.worker_waste_bytes),
    )
    import_ahead()
    Zygote(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
