"""Frames on a unix stream socket: u32 big-endian length, then the payload, with at most a few descriptors attached.

Both ends use it; what the payload means is messages.py's business.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence

from .errors import StoreProtocolError

# A request is a path and an id, or the leases of one process. A reply lists images or shards: a thousand of
# either fit easily.
MAX_REQUEST_BYTES = 64 * 1024
MAX_REPLY_BYTES = 16 * 1024 * 1024
RECEIVE_BYTES = 256 * 1024

_LENGTH = struct.Struct(">I")


def frame(payload: bytes) -> bytes:
    """The payload with its length in front."""
    return _LENGTH.pack(len(payload)) + payload


class FrameBuffer:
    """Cuts a byte stream into payloads of at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes. Raises StoreProtocolError as soon as a length exceeds the limit."""
        self._pending += data
        payloads = []
        while (payload := self._next()) is not None:
            payloads.append(payload)
        return payloads

    def _next(self) -> bytes | None:
        if len(self._pending) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._pending)
        if length > self._max_bytes:
            raise StoreProtocolError(f"a message of {length} bytes exceeds the limit of {self._max_bytes}")
        end = _LENGTH.size + length
        if len(self._pending) < end:
            return None
        payload = bytes(self._pending[_LENGTH.size : end])
        del self._pending[:end]
        return payload


def send(sock: socket.socket, data: memoryview, fds: Sequence[int]) -> int:
    """Sends what fits, the descriptors with the first byte; returns how many bytes went. Raises OSError."""
    if not fds:
        return sock.send(data, socket.MSG_NOSIGNAL)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    return sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, max_fds: int) -> tuple[bytes, list[int]]:
    """One read: bytes (empty where the peer closed) and the descriptors that came with them. Raises OSError."""
    space = socket.CMSG_SPACE(max_fds * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(RECEIVE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    if flags & socket.MSG_CTRUNC:
        close_all(fds)
        raise StoreProtocolError("the peer sent more descriptors than a message may carry")
    return data, fds


def close_all(fds: Sequence[int]) -> None:
    """Closes received descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Process and user that connected this unix socket (SO_PEERCRED); the pid is 0 in another pid namespace."""
    credentials = struct.Struct("3i")
    pid, uid, _ = credentials.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
    return int(pid), int(uid)


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
