"""Answers that are too large to be sent: what their client gets instead, and what becomes of a lease in them."""

import selectors
import socket
from collections.abc import Callable, Iterator

import pytest

from serverless_triton.loader import link
from serverless_triton.loader.connection import Connection
from serverless_triton.loader.connections import Connections
from serverless_triton.loader.errors import LoaderError
from serverless_triton.loader.layout import Extent, Piece
from serverless_triton.loader.messages import decode_reply
from serverless_triton.loader.processes import ProcessId
from serverless_triton.loader.receipts import LoadReceipt
from serverless_triton.loader.replies import (
    Attached,
    DeviceAttached,
    DeviceFile,
    Failed,
    ImageStatus,
    Prefetching,
    Reply,
)
from serverless_triton.loader.requests import Release, ReleaseDevice, Request

LONG = "x" * link.MAX_REPLY_BYTES
RECEIPT = LoadReceipt(
    tier="dram",
    bytes=1,
    queue_s=0.0,
    read_s=0.0,
    copy_s=0.0,
    attach_s=0.0,
    direct_io=False,
    verified=False,
    scattered=False,
    throttle_bytes_per_second=0,
)


def attached(file_name: str) -> Attached:
    extent = Extent(file_name=file_name, bytes=1, pieces=(Piece(offset=0, length=1),))
    return Attached(id=3, image_id=7, arena_id="a", extents=(extent,), receipt=RECEIPT)


def on_device(file_name: str) -> DeviceAttached:
    file = DeviceFile(file_name=file_name, offset=0, bytes=1)
    return DeviceAttached(id=3, image_id=7, device="GPU-1", memory_bytes=1, files=(file,), receipt=RECEIPT)


class Loop:
    """A server with one client, whose end is `client`."""

    def __init__(self, listener: socket.socket) -> None:
        self.requests: list[tuple[int, Request]] = []
        self.posted: list[Callable[[], None]] = []
        self.gone: list[int] = []
        self.client, server = socket.socketpair()
        server.setblocking(False)
        self.connections = Connections(listener, selectors.DefaultSelector(), self)
        self.connections._connect(Connection(1, ProcessId(pid=1, start_time=1), server))

    def on_connected(self, client: int, process: ProcessId) -> None: ...

    def on_request(self, client: int, request: Request) -> None:
        self.requests.append((client, request))

    def on_refused(self, client: int, request: Request, error: LoaderError) -> None: ...

    def on_disconnected(self, client: int) -> None:
        self.gone.append(client)

    def post(self, event: Callable[[], None]) -> None:
        self.posted.append(event)

    def later(self, pause_s: float, call: Callable[[], None]) -> None: ...

    def answer(self, message: Reply) -> Reply:
        """What the client gets where that is sent."""
        self.connections.send(1, message)
        for event in self.posted:
            event()
        data, _ = link.receive(self.client, 1)
        [payload] = link.FrameBuffer(link.MAX_REPLY_BYTES).feed(data)
        return decode_reply(payload)


@pytest.fixture
def loop() -> Iterator[Loop]:
    with socket.socket(socket.AF_UNIX) as listener:
        loop = Loop(listener)
        yield loop
        loop.connections.close()
        loop.client.close()


def test_what_fits_is_sent_as_it_is(loop: Loop) -> None:
    assert loop.answer(attached("/m")) == attached("/m")
    assert loop.requests == []


def test_an_answer_that_is_too_large_fails_with_its_size_and_what_to_do(loop: Loop) -> None:
    image = ImageStatus(
        path=LONG, bytes=1, state="ready", leases=0, orphaned_leases=0, read_bytes=1, pinned=False, scattered=False
    )
    failed = loop.answer(Prefetching(id=3, image=image))

    assert isinstance(failed, Failed)
    assert (failed.id, failed.error) == (3, "StoreError")
    assert f"{link.MAX_REPLY_BYTES} is the most" in failed.message
    assert "evict images" in failed.message
    assert (loop.requests, loop.gone) == ([], [])


@pytest.mark.parametrize(
    ("message", "release"), [(attached(LONG), Release(image_id=7)), (on_device(LONG), ReleaseDevice(image_id=7))]
)
def test_a_lease_that_cannot_be_told_ends(loop: Loop, message: Reply, release: Request) -> None:
    assert isinstance(loop.answer(message), Failed)
    assert loop.requests == [(1, release)]
