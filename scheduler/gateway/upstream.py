"""The link to one replica's server: a request goes up, responses come down, and either side may break it.

One upstream stream per request (a shared one can take a server down). What a broken link means for a stream is
`relay.py`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from serverless_triton.scheduler.errors import SchedulerError
from serverless_triton.scheduler.node_links import BROKEN_LINK, NodeLinks, tells_of_link

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # grpc-stubs leaves it out


class UpstreamError(SchedulerError):
    """The call ended with this gRPC status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def breaks_replica(self) -> bool:
        """The replica or the way to it is gone, so the stream may go on elsewhere; else the client must hear of it."""
        # NOT_FOUND and "no available versions": the model was unloaded there after the stream had been assigned.
        # An INTERNAL never breaks it: the request itself may be at fault, and would take one replica after the other.
        return self.code in ("UNAVAILABLE", "CANCELLED", "NOT_FOUND")


class LinkBroke(UpstreamError):
    """The connection to a server broke, or came to nothing. Its words are gRPC's own, with servers' addresses in them:
    for the log, and for no client, which gets `for_clients`.
    """

    def __init__(self, words: str) -> None:
        super().__init__("UNAVAILABLE", words)

    def for_clients(self) -> UpstreamError:
        return UpstreamError(self.code, BROKEN_LINK)


class RequestFailed(UpstreamError):
    """The replica itself says that the request failed. Its call ends without anybody cancelling it."""


class RequestRefused(UpstreamError):
    """Triton's own words on a stream that goes on, which carry no status."""


class UpstreamCall(Protocol):
    """One request on its way."""

    async def read(self) -> pb.ModelInferResponse | None:
        """The next response, None after the last. Raises UpstreamError."""

    def sever(self, error: UpstreamError) -> None:
        """Cancel the call; a read that waits, and every later one, raises `error`. The first call decides which."""


class Upstream(Protocol):
    """Where requests go."""

    def infer(self, address: str, request: pb.ModelInferRequest) -> UpstreamCall:
        """Start a call at a server's gRPC address. Returns at once."""

    def infer_once(self, address: str, request: pb.ModelInferRequest) -> UpstreamCall:
        """The same for a request that has one response. Returns at once."""

    async def close(self) -> None:
        """Give back every connection."""


class GrpcUpstream:
    """Triton's ModelStreamInfer over channels that are kept per address.

    No keepalive pings: Triton closes a connection that pings through a long prefill. Silence is the watchdog's.
    """

    def __init__(self, links: NodeLinks | None = None, *, max_message_bytes: int = 64 * 1024 * 1024) -> None:
        self._links = links or NodeLinks()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._options = (
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # A server that restarts on its port is tried again at once, not after the backoff of minutes.
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.enable_retries", 0),
        )

    def infer(self, address: str, request: pb.ModelInferRequest) -> UpstreamCall:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel(address))
        # Without `triton_grpc_error`: ending a stream by a status, Triton 2.51 handles a cancellation that nobody asked
        # for, and has crashed over it. Our backend's failures come as tensors (`RequestFailed`).
        return GrpcCall(stub.ModelStreamInfer(_once(request), metadata=self._links.triton_metadata))

    def infer_once(self, address: str, request: pb.ModelInferRequest) -> UpstreamCall:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel(address))
        return GrpcUnaryCall(stub.ModelInfer(request, metadata=self._links.triton_metadata))

    async def close(self) -> None:
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close(None)

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._links.channel(address, self._options)
        return channel


async def _once(request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferRequest]:
    yield request


class GrpcCall:
    """A ModelStreamInfer call that carries one request."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._severed: UpstreamError | None = None

    async def read(self) -> pb.ModelInferResponse | None:
        self._raise_severed()
        try:
            message = await self._call.read()
        except asyncio.CancelledError:
            # grpc.aio raises it for a call cancelled by `sever` too, and only the reader's own goes further.
            if not _cancelled():
                self._raise_severed()
            raise
        except grpc.aio.AioRpcError as error:
            raise self._cause(error) from error
        if message is _EOF:
            return None
        if message.error_message:
            # Triton's own words: no such model any more, a stub that is not healthy. Another replica may do better.
            raise RequestRefused("UNAVAILABLE", message.error_message)
        return message.infer_response

    def sever(self, error: UpstreamError) -> None:
        if self._severed is None:
            self._severed = error
            self._call.cancel()

    def _raise_severed(self) -> None:
        if self._severed is not None:
            raise self._severed from None

    def _cause(self, error: grpc.aio.AioRpcError) -> UpstreamError:
        # Replicas tell their own failures in a response: INTERNAL and UNKNOWN are what gRPC says of a connection that
        # went away in the middle of a call.
        code, words = error.code().name, error.details() or ""
        broke = code in ("UNAVAILABLE", "INTERNAL", "UNKNOWN")
        return self._severed or (LinkBroke(words) if broke else UpstreamError(code, words))


class GrpcUnaryCall:
    """A ModelInfer call: its response is read once. Errors have the server's own status, where it was reached."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._severed: UpstreamError | None = None
        self._read = False

    async def read(self) -> pb.ModelInferResponse | None:
        self._raise_severed()
        if self._read:
            return None
        try:
            response: pb.ModelInferResponse = await self._call
        except asyncio.CancelledError:
            if not _cancelled():
                self._raise_severed()
            raise
        except grpc.aio.AioRpcError as error:
            self._raise_severed()
            code, words = error.code().name, error.details() or ""
            raise (LinkBroke(words) if tells_of_link(words) else UpstreamError(code, words)) from error
        self._read = True
        return response

    def _raise_severed(self) -> None:
        if self._severed is not None:
            raise self._severed from None

    def sever(self, error: UpstreamError) -> None:
        if self._severed is None and not self._read:
            self._severed = error
            self._call.cancel()


def _cancelled() -> bool:
    """Whether somebody cancelled the current task; Python 3.10 can't say, and its relay notices at the next write."""
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is not None and cancelling() > 0
