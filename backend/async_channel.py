"""The agent's end of a channel: the same frames as `channel.py`, for asyncio."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Sequence

from serverless_triton.backend.channel import LENGTH, ChannelClosed, body_length, frame
from serverless_triton.backend.messages import Message, decode


class AsyncChannel:
    """One task receives; any task sends."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._send_lock = asyncio.Lock()
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
        try:
            async with self._send_lock:
                sent = socket.send_fds(self._socket, [data], list(descriptors)) if descriptors else 0
                await loop.sock_sendall(self._socket, memoryview(data)[sent:])
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    async def receive(self) -> Message:
        """Raises ChannelClosed at the end, ProtocolError on garbage."""
        return decode(await self._exactly(body_length(await self._exactly(LENGTH.size))))

    async def _exactly(self, count: int) -> bytes:
        loop = asyncio.get_running_loop()
        data = bytearray()
        while len(data) < count:
            try:
                part = await loop.sock_recv(self._socket, count - len(data))
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not part:
                raise ChannelClosed("end of stream")
            data += part
        return bytes(data)

    def close(self) -> None:
        self._socket.close()
