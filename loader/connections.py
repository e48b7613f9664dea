"""The clients that are connected to the store: who may be, what they ask, and when they are gone.

What they ask for is the server's business, and so is the loop whose selector this registers its sockets with.
"""

from __future__ import annotations

import errno
import logging
import os
import selectors
import socket
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Protocol

from . import link
from .connection import Connection, ReplyTooLarge
from .errors import LoaderError, StoreError, StoreProtocolError, TooManyClients, UserRefused
from .processes import UNKNOWN_PID, ProcessId, process_of
from .replies import Attached, DeviceAttached, Failed, Reply
from .requests import Release, ReleaseDevice, Request

log = logging.getLogger("serverless_triton.store")

MAX_CLIENTS = 1024
# Of those who are refused: that many may wait to be told so.
MAX_REFUSED = 64
# Where there is no descriptor left for another client: it waits in the listener meanwhile.
ACCEPT_PAUSE_S = 0.2
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Host(Protocol):
    """What the connections need of the server."""

    def on_connected(self, client: int, process: ProcessId) -> None: ...

    def on_request(self, client: int, request: Request) -> None: ...

    def on_refused(self, client: int, request: Request, error: LoaderError) -> None:
        """The client, which is cut off then, is to be told `error`."""

    def on_disconnected(self, client: int) -> None: ...

    def post(self, event: Callable[[], None]) -> None: ...

    def later(self, pause_s: float, call: Callable[[], None]) -> None: ...


class Connections:
    """Those of one listener, by number. All happens on the loop, which hands sockets that are ready to serve()."""

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector, host: Host) -> None:
        self._listener = listener
        self._selector = selector
        self._host = host
        self._connections: dict[int, Connection] = {}
        self._refused: dict[int, LoaderError] = {}
        self._client_ids = count(1)

    def number_from(self, first_client: int) -> None:
        """The next client gets this number."""
        self._client_ids = count(first_client)

    def listen(self) -> None:
        """From now on clients are accepted."""
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def send(self, client: int, message: Reply, descriptors: Sequence[int] = ()) -> None:
        """To a client that is gone, nothing. May be called in the middle of a decision: the loss is told afterwards."""
        connection = self._connections.get(client)
        if connection is None:
            return
        try:
            connection.queue(message, descriptors)
            connection.flush()
        except ReplyTooLarge as error:
            self._replace(client, message, error)
            return
        except (OSError, StoreProtocolError) as error:
            self._host.post(partial(self._drop, connection, str(error)))
            return
        self._watch_socket(connection)

    def serve(self, connection: Connection, events: int) -> None:
        """Sends and receives what a socket is ready for."""
        if self._connections.get(connection.client) is not connection:
            return
        try:
            if events & selectors.EVENT_WRITE:
                connection.flush()
                self._watch_socket(connection)
            if events & selectors.EVENT_READ:
                self._receive(connection)
        except BlockingIOError:
            return
        except (OSError, StoreProtocolError) as error:
            self._drop(connection, str(error))

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            log.warning("cannot accept a client: %s", error)
            if error.errno in NO_DESCRIPTORS:
                self._selector.unregister(self._listener)
                self._host.later(ACCEPT_PAUSE_S, self.listen)
            return
        sock.setblocking(False)
        pid, uid = link.peer_of(sock)
        try:
            process = self._admitted(pid, uid)
        except OSError as error:
            log.warning("cannot look at process %d: %s", pid, error)
            sock.close()
        except LoaderError as error:
            self._refuse(sock, error)
        else:
            self._connect(Connection(next(self._client_ids), process, sock))

    def _admitted(self, pid: int, uid: int) -> ProcessId:
        """Raises UserRefused, TooManyClients, ProcessUnwatchable."""
        if uid not in (os.geteuid(), 0):
            raise UserRefused(
                f"this store serves user {os.geteuid()}, whose it is, and root, but not user {uid}; ask as one of "
                "them, or start a store of your own"
            )
        if len(self._connections) - len(self._refused) >= MAX_CLIENTS:
            raise TooManyClients(
                f"{MAX_CLIENTS} clients are connected to this store already; close() the Stores that nobody uses, then "
                "ask again"
            )
        return process_of(pid)

    def _refuse(self, sock: socket.socket, error: LoaderError) -> None:
        """It is told at its first request: to one that is cut off at once nothing could be told."""
        log.warning("refused a client: %s", error)
        if len(self._refused) >= MAX_REFUSED:
            sock.close()
            return
        client = next(self._client_ids)
        self._refused[client] = error
        self._connect(Connection(client, ProcessId(pid=UNKNOWN_PID, start_time=0), sock))

    def _replace(self, client: int, message: Reply, error: ReplyTooLarge) -> None:
        """Says why there is no answer. A lease that nobody hears of ends, as if its holder had given it back."""
        log.error("no answer for client %d: %s", client, error)
        self.send(client, Failed(id=message.id, error=StoreError.__name__, message=str(error)))
        if isinstance(message, Attached):
            self._host.post(partial(self._host.on_request, client, Release(image_id=message.image_id)))
        elif isinstance(message, DeviceAttached):
            self._host.post(partial(self._host.on_request, client, ReleaseDevice(image_id=message.image_id)))

    def _connect(self, connection: Connection) -> None:
        self._connections[connection.client] = connection
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        self._host.on_connected(connection.client, connection.process)

    def _receive(self, connection: Connection) -> None:
        requests = connection.receive()
        if requests is None:
            self._drop(connection, "closed")
            return
        refusal = self._refused.get(connection.client)
        for request in requests:
            if refusal is not None:
                self._host.on_refused(connection.client, request, refusal)
                self._drop(connection, "refused")
                return
            self._host.on_request(connection.client, request)

    def _watch_socket(self, connection: Connection) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.has_unsent else 0)
        self._selector.modify(connection.sock, wanted, connection)

    def _drop(self, connection: Connection, reason: str) -> None:
        if self._connections.pop(connection.client, None) is None:
            return
        log.debug("client %d left: %s", connection.client, reason)
        self._refused.pop(connection.client, None)
        self._selector.unregister(connection.sock)
        connection.close()
        self._host.on_disconnected(connection.client)
