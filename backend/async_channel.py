"""The agent's end of a channel: the same frames as `channel.py`, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence

from serverless_triton.backend.channel import LENGTH, ChannelClosed, body_length, frame
from serverless_triton.backend.messages import Message, decode


class AsyncChannel:
    """One task receives; any task sends; whoever closes it wakes them."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._send_lock = asyncio.Lock()
        self._users = 0  # tasks that are sending or receiving
        self._closed = False
        layout = struct.Struct("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
        self.peer_pid, self._peer_user, _ = layout.unpack(credentials)  # as of when it connected

    @property
    def peer_is_ours(self) -> bool:
        """Whether the peer runs as this user (or as root)."""
        return self._peer_user in (0, os.getuid())

    async def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Raises ChannelClosed when the peer is gone. The descriptors stay the caller's."""
        data = frame(message)
        loop = asyncio.get_running_loop()
        with self._in_use():
            async with self._send_lock:
                sent = await self._send_with(data, descriptors) if descriptors else 0
                await loop.sock_sendall(self._socket, memoryview(data)[sent:])

    async def _send_with(self, data: bytes, descriptors: Sequence[int]) -> int:
        """How many of the bytes went, the descriptors with the first."""
        sent = 0
        while not sent:
            try:
                sent = socket.send_fds(self._socket, [data], list(descriptors))
            except BlockingIOError:  # noqa: PERF203 - once in a blue moon
                await self._writable()
        return sent

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        writable = asyncio.Event()
        loop.add_writer(self._socket, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(self._socket)

    async def receive(self) -> Message:
        """Raises ChannelClosed at the end, ProtocolError on garbage."""
        with self._in_use():
            return decode(await self._exactly(body_length(await self._exactly(LENGTH.size))))

    async def _exactly(self, count: int) -> bytes:
        loop = asyncio.get_running_loop()
        data = bytearray()
        while len(data) < count:
            part = await loop.sock_recv(self._socket, count - len(data))
            if not part:
                raise ChannelClosed("end of stream")
            data += part
        return bytes(data)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        if self._closed:
            raise ChannelClosed("closed on this side")
        self._users += 1
        try:
            yield
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        finally:
            self._users -= 1
            self._let_go()

    def close(self) -> None:
        """Ends the connection at once, and with it what is being sent or received. Idempotent."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError):  # the peer closed first
                self._socket.shutdown(socket.SHUT_RDWR)
            self._let_go()

    def _let_go(self) -> None:
        """When the last user has left: the loop's selector would keep the number, and be deaf to its next owner."""
        if self._closed and self._users == 0:
            self._socket.close()
