"""Replies of the server that wait until their client reads: the descriptors that go with them."""

import os
import socket
from pathlib import Path

from serverless_triton.loader import link
from serverless_triton.loader.connection import Connection
from serverless_triton.loader.messages import ArenaMapped, Failed
from serverless_triton.loader.processes import ProcessId

MAPPED = ArenaMapped(id=1, arena_id="abc", bytes=4096)
FILLING = Failed(id=1, error="StoreError", message="x" * (1 << 20))


def stalled() -> tuple[socket.socket, Connection]:
    """A client that has not read its last reply, and its connection."""
    client, server = socket.socketpair()
    server.setblocking(False)
    connection = Connection(1, ProcessId(pid=1, start_time=1), server)
    connection.queue(FILLING)
    connection.flush()
    assert connection.has_unsent
    return client, connection


def open_file(path: Path, content: str) -> int:
    path.write_text(content)
    return os.open(path, os.O_RDONLY)


def count_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def received(client: socket.socket, connection: Connection) -> list[int]:
    """The descriptors of all that was queued."""
    descriptors: list[int] = []
    while connection.has_unsent:
        descriptors += link.receive(client, 1)[1]
        connection.flush()
    client.setblocking(False)
    try:
        while True:
            descriptors += link.receive(client, 1)[1]
    except BlockingIOError:
        return descriptors


def test_a_descriptor_that_its_owner_closes_before_it_is_sent_arrives_all_the_same(tmp_path: Path) -> None:
    client, connection = stalled()
    promised = open_file(tmp_path / "promised", "promised")
    connection.queue(MAPPED, [promised])

    os.close(promised)
    other = open_file(tmp_path / "other", "other")
    assert other == promised
    (descriptor,) = received(client, connection)

    assert os.read(descriptor, 100) == b"promised"
    link.close_all([descriptor, other])
    connection.close()
    client.close()


def test_the_connection_keeps_no_descriptor_of_what_was_sent(tmp_path: Path) -> None:
    before = count_open()
    client, connection = stalled()
    promised = open_file(tmp_path / "promised", "promised")
    connection.queue(MAPPED, [promised])
    link.close_all([*received(client, connection), promised])

    assert count_open() == before + 2
    connection.close()
    client.close()


def test_a_connection_that_ends_keeps_no_descriptor_of_what_was_not_sent(tmp_path: Path) -> None:
    before = count_open()
    client, connection = stalled()
    promised = open_file(tmp_path / "promised", "promised")
    connection.queue(MAPPED, [promised])

    connection.close()

    link.close_all([promised])
    client.close()
    assert count_open() == before
