"""One client's connection as the server sees it: frames that arrive, replies that wait for room."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from . import link
from .errors import StoreProtocolError
from .messages import decode_request, encode
from .processes import ProcessId
from .replies import Progress, Reply
from .requests import Request

# A client that does not read its replies is cut off rather than buffered for.
MAX_UNSENT_REPLIES = 256


class ReplyTooLarge(Exception):
    """A client would take it for a broken frame, and the store for broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unsent:
    """What is left of a frame. `progress_of` is the request whose progress it tells, as long as none of it was sent."""

    data: memoryview
    descriptors: Sequence[int] = ()
    progress_of: int | None = None


class Connection:
    """Not blocking; used by the server's loop alone."""

    def __init__(self, client: int, process: ProcessId, sock: socket.socket) -> None:
        self.client = client
        self.process = process
        self.sock = sock
        self._frames = link.FrameBuffer(link.MAX_REQUEST_BYTES)
        self._outbox: deque[_Unsent] = deque()

    @property
    def has_unsent(self) -> bool:
        return bool(self._outbox)

    def queue(self, message: Reply, descriptors: Sequence[int] = ()) -> None:
        """Keeps duplicates of the descriptors until they are sent.

        Raises StoreProtocolError for a stalled client, ReplyTooLarge for what no client accepts; then nothing is sent.
        One who has not read the last news of an attach gets the latest instead.
        """
        progress_of = message.id if isinstance(message, Progress) else None
        if progress_of is not None:
            self._outbox = deque(unsent for unsent in self._outbox if unsent.progress_of != progress_of)
        if len(self._outbox) >= MAX_UNSENT_REPLIES:
            raise StoreProtocolError("a client does not read its replies")
        payload = encode(message)
        if len(payload) > link.MAX_REPLY_BYTES:
            raise ReplyTooLarge(
                f"the store's answer would take {len(payload)} bytes, and {link.MAX_REPLY_BYTES} is the most: it lists "
                "too many images or files; evict images that nobody needs, or give the checkpoint fewer shards"
            )
        data = memoryview(link.frame(payload))
        duplicates = [os.dup(descriptor) for descriptor in descriptors]
        self._outbox.append(_Unsent(data=data, descriptors=duplicates, progress_of=progress_of))

    def flush(self) -> None:
        """Sends what fits without blocking. Raises OSError where the client is gone."""
        while self._outbox:
            unsent = self._outbox[0]
            try:
                sent = link.send(self.sock, unsent.data, unsent.descriptors)
            except BlockingIOError:
                return
            link.close_all(unsent.descriptors)
            self._outbox.popleft()
            if sent < len(unsent.data):
                self._outbox.appendleft(_Unsent(data=unsent.data[sent:]))

    def receive(self) -> list[Request] | None:
        """What has arrived; None where the client closed. Raises OSError, BlockingIOError, StoreProtocolError."""
        data, descriptors = link.receive(self.sock, 1)
        link.close_all(descriptors)
        if not data:
            return None
        return [decode_request(payload) for payload in self._frames.feed(data)]

    def close(self) -> None:
        """Ends it, with the descriptors of what was not sent."""
        while self._outbox:
            link.close_all(self._outbox.popleft().descriptors)
        self.sock.close()
