"""Requests and replies as the JSON of the store's unix socket.

A frame is a u32 big-endian length and that many bytes of JSON (link.py); requests.py and replies.py say what is in it.
"""

from __future__ import annotations

from typing import get_args

from . import codec
from .replies import Reply
from .requests import Request

_REQUESTS: dict[str, type] = {kind.__name__: kind for kind in get_args(Request)}
_REPLIES: dict[str, type] = {kind.__name__: kind for kind in get_args(Reply)}


def encode(message: Request | Reply) -> bytes:
    """One message as JSON bytes."""
    return codec.to_json(type(message).__name__, message)


def decode_request(payload: bytes) -> Request:
    """Raises StoreProtocolError."""
    request: Request = codec.from_json(payload, _REQUESTS)
    return request


def decode_reply(payload: bytes) -> Reply:
    """Raises StoreProtocolError."""
    reply: Reply = codec.from_json(payload, _REPLIES)
    return reply
