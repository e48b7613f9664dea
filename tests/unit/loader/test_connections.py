"""Who may connect to the store, and what the others are told."""

import os
import selectors
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serverless_triton.loader import connections, link
from serverless_triton.loader.connection import Connection
from serverless_triton.loader.connections import Connections
from serverless_triton.loader.errors import LoaderError, TooManyClients, UserRefused
from serverless_triton.loader.messages import decode_reply, encode
from serverless_triton.loader.processes import ProcessId
from serverless_triton.loader.replies import Failed
from serverless_triton.loader.requests import GetStatus, Request


@dataclass
class Server:
    """The loop around the connections: refuses as the server does, and answers nothing else."""

    path: Path
    selector: selectors.DefaultSelector = field(default_factory=selectors.DefaultSelector)
    asked: list[tuple[int, Request]] = field(default_factory=list)
    events: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.listener.setblocking(False)
        self.connections = Connections(self.listener, self.selector, self)
        self.connections.listen()

    def on_connected(self, client: int, process: ProcessId) -> None: ...

    def on_disconnected(self, client: int) -> None: ...

    def on_request(self, client: int, request: Request) -> None:
        self.asked.append((client, request))

    def on_refused(self, client: int, request: Request, error: LoaderError) -> None:
        assert isinstance(request, GetStatus)
        self.connections.send(client, Failed(id=request.id, error=type(error).__name__, message=str(error)))

    def post(self, event: Callable[[], None]) -> None:
        self.events.append(event)

    def later(self, pause_s: float, call: Callable[[], None]) -> None: ...

    def step(self) -> None:
        for key, events in self.selector.select(0.2):
            if isinstance(key.data, Connection):
                self.connections.serve(key.data, events)
            else:
                key.data()
        while self.events:
            self.events.pop(0)()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "store")
    yield server
    server.connections.close()
    server.selector.close()
    server.listener.close()


def connect(server: Server) -> socket.socket:
    """A client that is connected."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(server.path))
    client.settimeout(0.2)
    server.step()
    return client


def ask(server: Server, client: socket.socket) -> Failed | None:
    """What it is told instead of an answer."""
    client.sendall(link.frame(encode(GetStatus(id=7))))
    server.step()
    try:
        [payload] = link.FrameBuffer(link.MAX_REPLY_BYTES).feed(client.recv(100_000))
    except TimeoutError:
        return None
    reply = decode_reply(payload)
    assert isinstance(reply, Failed)
    return reply


def test_a_client_of_another_user_is_refused_and_told_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "peer_of", lambda _: (os.getpid(), os.geteuid() + 1))
    with connect(server) as client:
        reply = ask(server, client)
        ended = client.recv(1)

    assert reply is not None
    assert reply.error == UserRefused.__name__
    assert f"user {os.geteuid() + 1}" in reply.message
    assert server.asked == []
    assert ended == b""


def test_a_client_too_many_is_told_so_and_taken_once_another_has_left(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CLIENTS", 1)
    first, second = connect(server), connect(server)
    reply = ask(server, second)
    assert reply is not None
    assert reply.error == TooManyClients.__name__
    assert ask(server, first) is None
    first.close()
    second.close()
    server.step()

    with connect(server) as third:
        assert ask(server, third) is None
    assert [client for client, _ in server.asked] == [1, 3]


def test_refused_clients_that_never_ask_are_cut_off_at_last(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_REFUSED", 2)
    with monkeypatch.context() as patch:
        patch.setattr(link, "peer_of", lambda _: (os.getpid(), os.geteuid() + 1))
        silent = [connect(server) for _ in range(3)]

    assert silent[2].recv(1) == b""
    with connect(server) as own:
        assert ask(server, own) is None
    for client in silent:
        client.close()
