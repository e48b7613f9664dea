"""Both kinds of channel end, over socketpairs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from serverless_triton.backend.async_channel import AsyncChannel
from serverless_triton.backend.channel import LENGTH, MAX_DESCRIPTORS, Channel, ChannelClosed, frame
from serverless_triton.backend.messages import Fork, ProtocolError, Retire, Serve

WAIT_S = 10.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only, read in one go


def test_descriptors_come_with_their_message_and_are_not_inherited(pair: tuple[socket.socket, socket.socket]):
    Channel(pair[0]).send(Serve(replica="r1"), [pair[0].fileno()])
    message, (descriptor,) = Channel(pair[1]).receive()
    assert message == Serve(replica="r1")
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("data", [LENGTH.pack(4) + b"null", LENGTH.pack(1 << 31), LENGTH.pack(9) + b"{"])
def test_descriptors_beside_garbage_are_closed(pair: tuple[socket.socket, socket.socket], data: bytes):
    before = open_descriptors()
    socket.send_fds(pair[0], [data], [pair[0].fileno()])
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises((ProtocolError, ChannelClosed)):
        Channel(pair[1]).receive()
    assert open_descriptors() == before


def test_more_descriptors_than_a_message_may_carry_are_refused(pair: tuple[socket.socket, socket.socket]):
    before = open_descriptors()
    socket.send_fds(pair[0], [frame(Fork())], [pair[0].fileno()] * (2 * MAX_DESCRIPTORS))
    with pytest.raises(ProtocolError, match="more descriptors"):
        Channel(pair[1]).receive()
    assert open_descriptors() == before


async def test_a_channel_that_is_closed_while_somebody_listens_leaves_later_ones_their_ears():
    """The selector must not remember a number that the next socket gets."""
    ours, theirs = socket.socketpair()
    channel = AsyncChannel(ours)
    listening = asyncio.ensure_future(channel.receive())
    await asyncio.sleep(0)
    channel.close()
    later, far = socket.socketpair()
    with theirs, far:
        later_channel = AsyncChannel(later)
        Channel(far).send(Retire())
        assert await asyncio.wait_for(later_channel.receive(), WAIT_S) == Retire()
        with pytest.raises(ChannelClosed):
            await asyncio.wait_for(listening, WAIT_S)
        assert ours.fileno() == -1
        later_channel.close()
        assert later.fileno() == -1


async def test_a_closed_channel_takes_nothing_more():
    ours, theirs = socket.socketpair()
    with theirs:
        channel = AsyncChannel(ours)
        channel.close()
        channel.close()
        with pytest.raises(ChannelClosed):
            await channel.send(Retire())
        with pytest.raises(ChannelClosed):
            await channel.receive()


async def test_descriptors_wait_for_a_peer_that_reads_slowly():
    ours, theirs = socket.socketpair()
    with theirs:
        channel, far = AsyncChannel(ours), Channel(theirs)
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += ours.send(frame(Retire()))
        sending = asyncio.ensure_future(channel.send(Serve(replica="r1"), [ours.fileno()]))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not sending.done()
        far.set_timeout(WAIT_S)
        for _ in range(filled // len(frame(Retire()))):
            far.receive()
        await asyncio.wait_for(sending, WAIT_S)
        message, (descriptor,) = far.receive()
        assert message == Serve(replica="r1")
        os.close(descriptor)
        channel.close()
