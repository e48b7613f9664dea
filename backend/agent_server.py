"""The agent as a process: the unix socket for workers and stubs, the gRPC port for the scheduler."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import grpc

from serverless_triton.backend import agent_pb2, agent_pb2_grpc, triton_control_pb2_grpc
from serverless_triton.backend.agent import NodeAgent
from serverless_triton.backend.agent_service import AgentService, Context
from serverless_triton.backend.announcer import Announcer
from serverless_triton.backend.async_channel import AsyncChannel
from serverless_triton.backend.channel import ChannelClosed
from serverless_triton.backend.devices import CPU, Devices, device_names
from serverless_triton.backend.epochs import Epochs
from serverless_triton.backend.messages import Acquire, ProtocolError, WorkerHello
from serverless_triton.backend.model_repository import read_parameters
from serverless_triton.backend.node_secret import NodeSecret
from serverless_triton.backend.node_tls import NodeTLS
from serverless_triton.backend.prefetches import Prefetches
from serverless_triton.backend.tiers import TierWatcher
from serverless_triton.backend.triton_control import TritonControlService, TritonLink
from serverless_triton.backend.triton_memory import triton_bytes
from serverless_triton.backend.worker_pool import LEARNED_AHEAD, WorkerPool
from serverless_triton.loader.errors import CheckpointError

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
TLS_FILES = tuple(field.name for field in fields(NodeTLS))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """One node's agent. Addresses are host:port; each of the `devices`, with commas between, has so many bytes.

    `secret_file`: what gRPC calls have to show; without it everybody who reaches the port is served.
    """

    node: str
    socket: Path
    grpc_address: str
    zygote_socket: Path
    store_socket: Path
    model_repository: Path
    device_memory_bytes: int
    devices: str = CPU
    spare_workers: int = 1
    secret_file: Path | None = None
    tls: NodeTLS | None = None
    schedulers: tuple[str, ...] = ()  # registries to announce the server to, by the addresses
    announced_triton: str = ""  # at which the scheduler reaches its gRPC,
    announced_agent: str = ""  # and this agent's
    triton_pid_file: Path | None = None  # of the node's Triton; None: what models take of it is not measured
    triton_address: str | None = None  # of its gRPC, host:port; None: no scheduler can change it

    def measure(self, models: Iterable[str]) -> int:
        """Bytes of the node's Triton with these models' processes."""
        if self.triton_pid_file is None:
            return 0
        return triton_bytes(self.triton_pid_file, [self.model_repository / model for model in models])


async def serve(config: AgentConfig) -> None:
    """Until SIGTERM or SIGINT. Workers and stubs outlive it.

    Raises OSError where an address is taken, ValueError for devices that a node does not have, SecretUnusable.
    """
    pool = WorkerPool(config.zygote_socket, config.spare_workers)
    devices = Devices(dict.fromkeys(device_names(config.devices), config.device_memory_bytes))
    agent = NodeAgent(pool, devices, epochs=Epochs(config.socket.with_suffix(".epoch")))
    tiers = TierWatcher(agent, config.store_socket)
    pool.learn(read_parameters(config.model_repository)[:LEARNED_AHEAD])
    with _listening(config.socket) as listener:
        prefetches = Prefetches(config.store_socket, on_change=agent.touch)
        service = AgentService(config.node, agent, tiers, prefetches, config.measure)
        server = await _grpc_server(config, service, TritonControlService(agent, _triton(config)))
        works = [pool.run(), tiers.run(), _accept(listener, agent)]
        tasks = [asyncio.ensure_future(work) for work in (*works, *_announcing(config))]
        stopped = _stop_signal()
        logger.info("agent_ready node=%s grpc=%s", config.node, config.grpc_address)
        await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        await server.stop(grace=None)
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _announcing(config: AgentConfig) -> Iterator[Coroutine[Any, Any, None]]:
    if not config.schedulers:
        return
    server = agent_pb2.Announcement(
        node=config.node, triton=config.announced_triton, agent=config.announced_agent or config.grpc_address
    )
    secret = None if config.secret_file is None else NodeSecret.read(config.secret_file)
    yield Announcer(
        server=server,
        schedulers=config.schedulers,
        metadata=() if secret is None else secret.registry_metadata,
        credentials=None if config.tls is None else config.tls.channel_credentials(),
    ).run()


def _triton(config: AgentConfig) -> TritonLink | None:
    if config.triton_address is None:
        return None
    secret = None if config.secret_file is None else NodeSecret.read(config.secret_file)
    return TritonLink.of(config.triton_address, secret, config.tls)


async def _grpc_server(
    config: AgentConfig, service: AgentService, control: TritonControlService | None = None
) -> grpc.aio.Server:
    # Without the option a second server would share the port, and each would get half of the calls.
    checks = [] if config.secret_file is None else [SecretCalls(NodeSecret.read(config.secret_file))]
    server = grpc.aio.server(interceptors=checks, options=[("grpc.so_reuseport", 0)])
    agent_pb2_grpc.add_NodeAgentServicer_to_server(service, server)
    if control is not None:
        triton_control_pb2_grpc.add_TritonControlServicer_to_server(control, server)
    try:
        if config.tls is None:
            server.add_insecure_port(config.grpc_address)
        else:
            server.add_secure_port(config.grpc_address, config.tls.server_credentials())
    except RuntimeError as error:
        raise OSError(f"the agent's address {config.grpc_address} is taken; choose another") from error
    await server.start()
    return server


class SecretCalls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # it takes none at run time
    """Serves only calls that show the secret."""

    def __init__(self, secret: NodeSecret) -> None:
        self._secret = secret

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or self._secret.is_shown_in(handler_call_details.invocation_metadata):
            return handler
        logger.warning("call_refused method=%s reason=%r", handler_call_details.method, "it did not show the secret")
        answers = "unary_stream" if handler.response_streaming else "unary_unary"
        return handler._replace(request_deserializer=None, **{answers: _refuse})


async def _refuse(_: bytes, context: Context) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the call does not show the cluster's secret")


def _stop_signal() -> asyncio.Task[None]:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return loop.create_task(_until(stopped))


async def _until(event: asyncio.Event) -> None:
    await event.wait()


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
        yield listener


async def _accept(listener: socket.socket, agent: NodeAgent) -> None:
    connections: set[asyncio.Task[None]] = set()
    while True:
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        task = asyncio.get_running_loop().create_task(_welcome(AsyncChannel(connection), agent))
        connections.add(task)
        task.add_done_callback(connections.discard)


async def _welcome(channel: AsyncChannel, agent: NodeAgent) -> None:
    """The first message says who it is."""
    try:
        if not channel.peer_is_ours:
            raise ProtocolError("a process of another user connected")
        message = await asyncio.wait_for(channel.receive(), HELLO_TIMEOUT_S)
        if isinstance(message, WorkerHello):
            await agent.welcome_worker(channel, message)
        elif isinstance(message, Acquire):
            await agent.welcome_stub(channel, message)
            channel.close()
        else:
            raise ProtocolError(f"a {type(message).__name__} is no greeting")
    except (ProtocolError, ChannelClosed, ValueError, CheckpointError, asyncio.TimeoutError) as error:
        logger.warning("connection_refused pid=%d error=%s", channel.peer_pid, error)
        channel.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run one node's agent.")
    parser.add_argument("--node", required=True)
    for name in ("socket", "zygote-socket", "store-socket", "model-repository"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--grpc-address", required=True)
    parser.add_argument("--triton-address")
    parser.add_argument("--device-memory-bytes", type=int, required=True)
    parser.add_argument("--devices", default=CPU)
    parser.add_argument("--spare-workers", type=int, default=1)
    for name in ("secret-file", "triton-pid-file"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--scheduler", action="append", dest="schedulers", default=[])
    for name in ("announced-triton", "announced-agent"):
        parser.add_argument(f"--{name}", default="")
    for name in TLS_FILES:
        parser.add_argument(f"--tls-{name.replace('_', '-')}", type=Path)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    options = vars(parser.parse_args(arguments))
    files = {name: options.pop(f"tls_{name}") for name in TLS_FILES}
    if any(files.values()) and not all(files.values()):
        parser.error("give all of --tls-certificate-file, --tls-key-file and --tls-ca-file, or none of them")
    options["schedulers"] = tuple(options["schedulers"])
    asyncio.run(serve(AgentConfig(tls=NodeTLS(**files) if all(files.values()) else None, **options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
