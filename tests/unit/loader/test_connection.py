"""Replies of the server that wait until their client reads: what of them it gets, and the descriptors with them."""

import os
import socket
from pathlib import Path

from serverless_triton.loader import link
from serverless_triton.loader.connection import Connection
from serverless_triton.loader.messages import decode_reply
from serverless_triton.loader.processes import ProcessId
from serverless_triton.loader.replies import ArenaMapped, Failed, Progress, Reply

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


class Trickle:
    """A socket that takes as many bytes as there is room for."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes
        self.sent = b""

    def send(self, data: memoryview, flags: int) -> int:
        if not self.room_bytes:
            raise BlockingIOError
        taken = bytes(data[: self.room_bytes])
        self.sent += taken
        self.room_bytes -= len(taken)
        return len(taken)


def open_file(path: Path, content: str) -> int:
    path.write_text(content)
    return os.open(path, os.O_RDONLY)


def read_all(client: socket.socket, connection: Connection) -> list[Reply]:
    """What the client gets of all that was queued."""
    connection.flush()
    frames, replies = link.FrameBuffer(link.MAX_REPLY_BYTES), []
    client.settimeout(0.0)
    while True:
        try:
            data, _ = link.receive(client, 1)
        except BlockingIOError:
            return replies
        replies += [decode_reply(payload) for payload in frames.feed(data)]
        connection.flush()


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


def test_a_client_that_catches_up_gets_the_latest_news_of_each_attach_before_the_answer() -> None:
    client, connection = stalled()
    first, last, other = (
        Progress(id=request_id, bytes_done=done, bytes_total=9, bytes_ahead=0)
        for request_id, done in ((1, 3), (1, 9), (2, 5))
    )
    for message in (first, other, last, MAPPED):
        connection.queue(message)

    replies = read_all(client, connection)

    assert replies == [FILLING, other, last, MAPPED]
    connection.close()
    client.close()


def test_news_that_a_client_has_half_read_is_sent_to_its_end() -> None:
    sock = Trickle(room_bytes=6)
    connection = Connection(1, ProcessId(pid=1, start_time=1), sock)
    begun, last = (Progress(id=1, bytes_done=done, bytes_total=9, bytes_ahead=0) for done in (3, 9))
    connection.queue(begun)
    connection.flush()

    connection.queue(last)
    sock.room_bytes = 1 << 20
    connection.flush()

    assert [decode_reply(payload) for payload in link.FrameBuffer(1 << 20).feed(sock.sent)] == [begun, last]


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
