"""A proxy before a server that can be told to be slow, to say nothing, and to cut connections."""

import socket
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

RECEIVE_BYTES = 1 << 16
# What happens to one connection: client, server.
Behaviour = Callable[[socket.socket, socket.socket], None]


@dataclass
class Proxy:
    """The next connections behave as `plan` says, those after it as `otherwise`."""

    port: int = 0
    plan: deque[Behaviour] = field(default_factory=deque)
    otherwise: Behaviour = field(default_factory=lambda: passing())
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def next_behaviour(self) -> Behaviour:
        with self.lock:
            self.connections += 1
            return self.plan.popleft() if self.plan else self.otherwise


def passing(*, bytes_per_second: float = 0) -> Behaviour:
    """As without a proxy, or as slow as that."""

    def run(client: socket.socket, server: socket.socket) -> None:
        while data := server.recv(RECEIVE_BYTES):
            client.sendall(data)
            if bytes_per_second:
                time.sleep(len(data) / bytes_per_second)

    return run


def cut_after(size_bytes: int) -> Behaviour:
    """The answer breaks off."""

    def run(client: socket.socket, server: socket.socket) -> None:
        left = size_bytes
        while left and (data := server.recv(min(left, RECEIVE_BYTES))):
            client.sendall(data)
            left -= len(data)

    return run


def silent_after(size_bytes: int, until: threading.Event) -> Behaviour:
    """The answer stops, and the connection stays."""

    def run(client: socket.socket, server: socket.socket) -> None:
        cut_after(size_bytes)(client, server)
        until.wait()

    return run


def answering(response: bytes) -> Behaviour:
    """The server is not asked at all."""

    def run(client: socket.socket, _server: socket.socket) -> None:
        client.sendall(response)

    return run


class _Handler(socketserver.BaseRequestHandler):
    proxy: Proxy
    upstream: tuple[str, int]

    def handle(self) -> None:
        with suppress(OSError), socket.create_connection(self.upstream) as server:
            asking = threading.Thread(target=_pass_on, args=(self.request, server), daemon=True)
            asking.start()
            self.proxy.next_behaviour()(self.request, server)


def _pass_on(client: socket.socket, server: socket.socket) -> None:
    with suppress(OSError):
        while data := client.recv(RECEIVE_BYTES):
            server.sendall(data)


@contextmanager
def proxy_before(host: str, port: int) -> Iterator[Proxy]:
    """A proxy on a free port of the loopback interface."""
    proxy = Proxy()
    handler = type("BoundHandler", (_Handler,), {"proxy": proxy, "upstream": (host, port)})
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler, bind_and_activate=True)
    server.daemon_threads = True
    server.block_on_close = False
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
