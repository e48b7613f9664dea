"""KServe v2 over gRPC, as Triton's port 8001 speaks it.

Carries messages between clients and `service.py`. A client stream may hold many requests at once; each is a relayed
stream of its own, and their responses are written one at a time, so that a client that reads slowly is served slowly.
"""

# ruff: noqa: N802  # the protocol names the methods

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.scheduler.errors import InvalidRequest, Overloaded, SchedulerError
from serverless_triton.scheduler.gateway.access import Access, CheckedCalls
from serverless_triton.scheduler.gateway.composer import FINAL
from serverless_triton.scheduler.gateway.door import CallsByAddress, Door
from serverless_triton.scheduler.gateway.grpc_settings import CALLS
from serverless_triton.scheduler.gateway.grpc_wire import ReadableMessages
from serverless_triton.scheduler.gateway.health import HealthService
from serverless_triton.scheduler.gateway.message_budget import MessageBudget
from serverless_triton.scheduler.gateway.metrics import GatewayMetrics
from serverless_triton.scheduler.gateway.service import InferenceService
from serverless_triton.scheduler.gateway.settings import GatewaySettings, host_and_port
from serverless_triton.scheduler.gateway.stall_timer import StallTimer
from serverless_triton.scheduler.gateway.statuses import trailing_metadata
from serverless_triton.scheduler.gateway.terms import Terms, grpc_terms
from serverless_triton.scheduler.gateway.tls import grpc_credentials
from serverless_triton.scheduler.gateway.tracing import TracedCalls
from serverless_triton.scheduler.gateway.unary_calls import TimelyMessages
from serverless_triton.scheduler.gateway.watchdog import DeadlineExceeded

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_Answer = TypeVar("_Answer")
_MOST_PENDING_CALLS = 65536
RETRY_AFTER = "retry_after_s"  # beside the error message on a stream that goes on
_CLIENT_GONE: Any = grpc.aio.BaseError  # what a write raises then


class GrpcFrontend(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient has no types
    """The servicer. Method names are the protocol's."""

    def __init__(
        self,
        service: InferenceService,
        access: Access,
        metrics: GatewayMetrics,
        budget: MessageBudget,
        settings: GatewaySettings,
    ) -> None:
        self._service = service
        self._access = access
        self._metrics = metrics
        self._budget = budget
        self._limits = StreamLimits(
            max_requests=settings.max_requests_per_stream, stalled_timeout_s=settings.connections.stalled_timeout_s
        )
        for name, answer in CALLS.items():
            setattr(self, name, self._answering(answer))

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._service.is_ready())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return self._service.server_metadata()

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        ready = await self._answer(context, lambda service: service.model_ready(request.name, request.version))
        return pb.ModelReadyResponse(ready=ready)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        return await self._answer(context, lambda service: service.model_metadata(request.name, request.version))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        return await self._answer(context, lambda service: service.model_config(request.name, request.version))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        return await self._answer(context, lambda service: service.model_statistics(request.name, request.version))

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        name, ready = request.repository_name, request.ready
        return await self._answer(context, lambda service: service.repository_index(name, ready_only=ready))

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        name, repository, parameters = request.model_name, request.repository_name, request.parameters
        config = parameters.get("config")
        if config is not None and config.WhichOneof("parameter_choice") != "string_param":
            words = "invalid value type for load parameter 'config', expected string_param."
            await self._abort(context, InvalidRequest(words))
        await self._finish(context, lambda service: service.load(name, repository, parameters))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        name, repository = request.model_name, request.repository_name
        await self._finish(context, lambda service: service.unload(name, repository))
        return pb.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """The whole text in one response, which stock Triton refuses for decoupled models."""
        return await self._finish(context, lambda service: _whole(service, request, context, self._budget))

    async def ModelStreamInfer(self, requests: AsyncIterator[pb.ModelInferRequest], context: Context) -> None:
        stream = ClientStream(lambda: self._of(context), self._metrics, self._budget, context, self._limits)
        await stream.serve(requests)

    def _of(self, context: Context) -> InferenceService:
        """What the caller may see and do. Raises Unauthenticated."""
        return self._service.of(self._access.caller(context.invocation_metadata() or ()))

    def _answering(self, answer: Callable[[InferenceService, Any], _Answer]) -> Callable[..., Awaitable[_Answer]]:
        async def serve(request: Any, context: Context) -> _Answer:
            return await self._answer(context, lambda service: answer(service, request))

        return serve

    async def _answer(self, context: Context, answer: Callable[[InferenceService], _Answer]) -> _Answer:
        try:
            return answer(self._of(context))
        except SchedulerError as error:
            await self._abort(context, error)

    async def _finish(self, context: Context, work: Callable[[InferenceService], Awaitable[_Answer]]) -> _Answer:
        try:
            return await work(self._of(context))
        except SchedulerError as error:
            await self._abort(context, error)

    async def _abort(self, context: Context, error: SchedulerError) -> NoReturn:
        self._metrics.failed(error)
        await context.abort(grpc.StatusCode[error.code], str(error), trailing_metadata(error))


async def _whole(
    service: InferenceService, request: pb.ModelInferRequest, context: Context, budget: MessageBudget
) -> pb.ModelInferResponse:
    with budget.share(request.ByteSize()):
        stream = service.open(request, _terms(context), unary=True)
        async with aclosing(stream.responses()) as responses:
            return [response async for response in responses][-1]


def _terms(context: Context) -> Terms:
    return grpc_terms(context.time_remaining(), context.invocation_metadata() or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Requests in flight on a client's stream, and seconds for which the client may take nothing of their answers."""

    max_requests: int
    stalled_timeout_s: float


class ClientStream:
    """One ModelStreamInfer call of a client, with any number of requests on it.

    `service` is asked for with every request: a key that is taken back ends what an open stream may do.
    """

    def __init__(
        self,
        service: Callable[[], InferenceService],
        metrics: GatewayMetrics,
        budget: MessageBudget,
        context: Context,
        limits: StreamLimits,
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._budget = budget
        self._context = context
        self._write_turn = asyncio.Lock()
        self._begun = False
        self._stalled_timeout_s = limits.stalled_timeout_s
        self._writing = StallTimer(limits.stalled_timeout_s, self._on_stall)
        self._slots = asyncio.Semaphore(limits.max_requests)
        self._tasks: set[asyncio.Task[None]] = set()
        # Triton's switch: errors end the stream with their gRPC status.
        self._ends_on_error = ("triton_grpc_error", "true") in tuple(context.invocation_metadata() or ())
        self._failure: SchedulerError | None = None
        self._failed = asyncio.Event()

    async def serve(self, requests: AsyncIterator[pb.ModelInferRequest]) -> None:
        """Until the client has closed its side and every request is answered."""
        reading = asyncio.create_task(self._read(requests))
        failing = asyncio.create_task(self._failed.wait())
        try:
            await asyncio.wait({reading, failing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._writing.stop()
            await _cancel({reading, failing} | self._tasks)
        if self._failure is not None:
            self._metrics.failed(self._failure)
            status = grpc.StatusCode[self._failure.code]
            # It stands behind what the client has not taken; until then, or until it hangs up, gRPC counts the call.
            await self._context.abort(status, str(self._failure), trailing_metadata(self._failure))

    async def _read(self, requests: AsyncIterator[pb.ModelInferRequest]) -> None:
        async for request in requests:
            await self._slots.acquire()
            task = asyncio.create_task(self._serve(request))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, request: pb.ModelInferRequest) -> None:
        try:
            with self._budget.share(request.ByteSize()):
                await self._relay(request)
        except Overloaded as error:
            await self._refuse(error, pb.ModelInferResponse(id=request.id))

    async def _relay(self, request: pb.ModelInferRequest) -> None:
        failed = pb.ModelInferResponse(id=request.id)
        try:
            service = self._service()
            service.count_message()
            stream = service.open(request, _terms(self._context))
            failed.model_name = request.model_name
            failed.parameters[FINAL].bool_param = True
            async with aclosing(stream.responses()) as responses:
                async for response in responses:
                    await self._write(pb.ModelStreamInferResponse(infer_response=response))
        except SchedulerError as error:
            await self._refuse(error, failed)
        except _CLIENT_GONE:
            raise
        except Exception:  # a bug of ours that one request found must not end the other requests of this stream
            log.exception("client_request_failed model=%s", failed.model_name)
            await self._refuse(SchedulerError("internal error"), failed)

    async def _refuse(self, error: SchedulerError, failed: pb.ModelInferResponse) -> None:
        if self._ends_on_error:
            self._fail(error)
            return
        self._metrics.failed(error)
        if error.retry_after_s is not None:
            failed.parameters[RETRY_AFTER].double_param = error.retry_after_s
        await self._write(pb.ModelStreamInferResponse(error_message=str(error), infer_response=failed))

    async def _write(self, message: pb.ModelStreamInferResponse) -> None:
        async with self._write_turn:
            self._writing.begin()
            try:
                if not self._begun:  # by itself: grpc.aio would send it again with the status of a write that is stuck
                    self._begun = True
                    await self._context.send_initial_metadata(())
                await self._context.write(message)
            finally:
                self._writing.end()

    def _on_stall(self) -> None:
        self._fail(DeadlineExceeded(f"the client took nothing of its answers for {self._stalled_timeout_s:g} s"))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, _CLIENT_GONE):
            log.error("client_stream_failed", exc_info=error)
            self._fail(SchedulerError("internal error"))

    def _fail(self, error: SchedulerError) -> None:
        self._failure = self._failure or error
        self._failed.set()


async def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class GrpcServer:
    """The listening side. `port` is the one it got."""

    def __init__(
        self, frontend: GrpcFrontend, health: HealthService, checks: CheckedCalls, settings: GatewaySettings
    ) -> None:
        limits = settings.connections
        calls = Door("calls", most=None, most_each=limits.max_grpc_calls_per_address)
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=limits.max_grpc_calls,
            interceptors=(
                CallsByAddress(calls),
                checks,
                TimelyMessages(limits.body_timeout_s),
                ReadableMessages(),
                TracedCalls(),
            ),
            options=(
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.server_handshake_timeout_ms", int(limits.handshake_timeout_s * 1000)),
                ("grpc.max_connection_idle_ms", int(limits.grpc_idle_timeout_s * 1000)),
                ("grpc.max_concurrent_streams", limits.max_calls_per_connection),
                ("grpc.max_allowed_incoming_connections", limits.max_grpc_connections),
                # Calls that came and were not looked at yet: beyond the first number gRPC cancels some at random,
                # beyond the second all, without a word. Its own are 1,000 and 3,000, which a burst of clients passes.
                ("grpc.server.max_pending_requests", _MOST_PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING_CALLS),
            ),
        )
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(frontend, self._server)
        health.add_to(self._server)
        self._address = host_and_port(settings.host, settings.grpc_port)
        self._credentials = None if settings.tls is None else grpc_credentials(settings.tls)
        self._drain_s = settings.drain_timeout_s
        self.port = 0

    async def start(self) -> None:
        """Raises RuntimeError where the address is taken."""
        if self._credentials is None:
            self.port = self._server.add_insecure_port(self._address)
        else:
            self.port = self._server.add_secure_port(self._address, self._credentials)
        await self._server.start()

    async def stop(self) -> None:
        """Refuses new calls at once and lets running ones end, for as long as the settings allow."""
        await self._server.stop(self._drain_s)
