"""How messages travel over a unix socket: a u32 length (little-endian), JSON, and descriptors beside the first byte.

`Channel` blocks and is for the stub, the worker and the zygote; the agent's end is `async_channel.py`. Standard library
only, and no asyncio: importing that would cost a stub 30 ms of every start.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Sequence

from serverless_triton.backend.messages import Message, ProtocolError, decode, encode

MAX_MESSAGE_BYTES = 64 << 20
MAX_DESCRIPTORS = 4
LENGTH = struct.Struct("<I")


class ChannelClosed(Exception):
    """The peer is gone."""


def frame(message: Message) -> bytes:
    """Raises ProtocolError for a message that cannot be said."""
    data = encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        kind = type(message).__name__
        raise ProtocolError(f"a {kind} of {len(data)} bytes is too large; the limit is {MAX_MESSAGE_BYTES}")
    return LENGTH.pack(len(data)) + data


def body_length(header: bytes | bytearray) -> int:
    (length,) = LENGTH.unpack(header)
    if length > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {length} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return int(length)


class Channel:
    """A blocking end. One thread receives; any thread sends."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._send_lock = threading.Lock()

    @classmethod
    def connect(cls, path: str, timeout_s: float) -> Channel:
        """Raises OSError when nobody listens there within the time."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(path)
            connection.settimeout(None)
        except OSError:
            connection.close()
            raise
        return cls(connection)

    @classmethod
    def adopt(cls, descriptor: int) -> Channel:
        """Over a connected socket that came as a descriptor."""
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_timeout(self, timeout_s: float | None) -> None:
        """How long `receive` and `send` wait before they raise TimeoutError."""
        self._socket.settimeout(timeout_s)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Raises ChannelClosed when the peer is gone, ProtocolError for a message that cannot be said."""
        data = frame(message)
        try:
            with self._send_lock:
                sent = socket.send_fds(self._socket, [data], list(descriptors)) if descriptors else 0
                self._socket.sendall(memoryview(data)[sent:])
        except (BrokenPipeError, ConnectionError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise ChannelClosed(str(error)) from error

    def receive(self) -> tuple[Message, list[int]]:
        """The next message and the descriptors that came with it.

        Raises ChannelClosed at the end, ProtocolError on garbage.
        """
        descriptors: list[int] = []
        try:
            header = self._begin(descriptors)
            header += self._exactly(LENGTH.size - len(header))
            return decode(self._exactly(body_length(header))), descriptors
        except BaseException as error:
            for descriptor in descriptors:  # nobody else knows of them
                os.close(descriptor)
            if isinstance(error, ConnectionError):
                raise ChannelClosed(str(error)) from error
            raise

    def _begin(self, descriptors: list[int]) -> bytes:
        """A message's first bytes; what came beside them is added to `descriptors`, also when this raises."""
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        data, ancillary, flags, _ = self._socket.recvmsg(LENGTH.size, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors += array.array("i", rights[: len(rights) - len(rights) % array.array("i").itemsize])
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError(f"more descriptors than the {MAX_DESCRIPTORS} that a message may carry")
        if not data:
            raise ChannelClosed("end of stream")
        return data

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise ChannelClosed("end of stream inside a message")
            data += part
        return bytes(data)

    def leave(self) -> None:
        """Close a copy that a fork brought along: who holds another goes on with that, and the peer notices nothing."""
        self._socket.close()

    def close(self) -> None:
        """Wakes a thread that is receiving."""
        with contextlib.suppress(OSError):  # the peer closed first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
