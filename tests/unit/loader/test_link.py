import os
import socket
from pathlib import Path

import pytest

from serverless_triton.loader import link
from serverless_triton.loader.errors import StoreProtocolError


def count_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_frames_are_cut_however_the_bytes_arrive() -> None:
    stream = link.frame(b"one") + link.frame(b"") + link.frame(b"three")
    buffer = link.FrameBuffer(100)

    payloads = [payload for i in range(len(stream)) for payload in buffer.feed(stream[i : i + 1])]

    assert payloads == [b"one", b"", b"three"]
    assert link.FrameBuffer(100).feed(stream) == payloads


def test_a_frame_that_is_too_long_is_refused_before_it_arrives() -> None:
    with pytest.raises(StoreProtocolError, match="exceeds the limit of 3"):
        link.FrameBuffer(3).feed(link.frame(b"four")[:4])


def test_a_descriptor_travels_with_its_frame() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    with ours, theirs:
        link.send(ours, memoryview(b"x"), [writer])
        os.close(writer)
        data, fds = link.receive(theirs, 1)
    assert data == b"x"
    assert len(fds) == 1
    assert not os.get_inheritable(fds[0])
    os.write(fds[0], b"through")
    assert os.read(reader, 10) == b"through"
    link.close_all([*fds, reader])


def test_surplus_descriptors_are_closed_and_refused() -> None:
    ours, theirs = socket.socketpair()
    open_before = count_open()
    with ours, theirs:
        link.send(ours, memoryview(b"x"), [0] * 20)
        with pytest.raises(StoreProtocolError):
            link.receive(theirs, 1)
        assert count_open() == open_before


def test_the_peer_is_known_by_its_user() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert link.peer_of(ours) == (os.getpid(), os.geteuid())
