"""Compressed answers over HTTP: which coding a client would rather have, and a body in it.

Triton weighs codings as `Accept-Encoding` lists them: the first of the heaviest that it knows, where `*` is none.
"""

from __future__ import annotations

import re
import zlib

_CODED = re.compile(r" *([^ ;][^;]*?)(?:;q=([0-9]+(?:\.[0-9]*)?|\.[0-9]+).*)?", re.DOTALL)
_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's numbers for its two headers
IDENTITY = "identity"


def preferred_coding(accepted: str | None) -> str:
    """Of the header Accept-Encoding: "gzip", "deflate" or "identity"."""
    best, most = IDENTITY, 0.0
    for listed in (accepted or "").split(","):
        found = _CODED.fullmatch(listed)
        if found is None:
            continue
        coding, weight = found[1], 1.0 if found[2] is None else float(found[2])
        if coding in (*_WINDOW_BITS, IDENTITY) and weight > most:
            best, most = coding, weight
    return best


def encode(body: bytes, coding: str) -> bytes:
    """The body in a coding that `preferred_coding` chose."""
    if coding == IDENTITY:
        return body
    packer = zlib.compressobj(wbits=_WINDOW_BITS[coding])
    return packer.compress(body) + packer.flush()
