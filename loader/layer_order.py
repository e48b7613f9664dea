"""The order in which an engine wants a checkpoint's tensors: embeddings, layers by number, norms, heads. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ._core import TensorEntry

# A tensor that begins at a multiple of this lies aligned for every dtype of the format.
WIDEST_ITEM_BYTES = 8

_HEAD = re.compile(r"head|embed_out|(^|[._])(output|score|classifier)([._]|$)")
_EMBEDDING = re.compile(r"embed|(^|[._])w[tp]e([._]|$)")
_NUMBER = re.compile("([0-9]+)")


def in_layer_order(tensors: Iterable[TensorEntry]) -> list[TensorEntry]:
    """The tensors as they should lie in a file, whatever order they come in.

    Those whose length is no multiple of 8 bytes come last, those with the largest items first: without holes between
    tensors, which the format forbids, they would push everything behind them out of alignment.
    """
    return sorted(tensors, key=lambda tensor: (_displacement(tensor), *layer_key(tensor.name)))


def layer_key(name: str) -> tuple[int, list[tuple[int, str]], str]:
    """Sorts names by their part of the model, and within it numbers by their value."""
    return _part(name), [_piece_key(piece) for piece in _NUMBER.split(name)], name


def _part(name: str) -> int:
    if any(component.isdecimal() for component in name.split(".")):
        return 1
    if _HEAD.search(name):
        return 3
    return 0 if _EMBEDDING.search(name) else 2


def _piece_key(piece: str) -> tuple[int, str]:
    # More digits, greater number; int() would refuse the thousands of digits that a hostile name may have.
    digits = piece.lstrip("0")
    return (len(digits), digits) if piece.isdecimal() else (0, piece)


def _displacement(tensor: TensorEntry) -> int:
    """0 where the tensor keeps what follows aligned for every dtype, more the less it does."""
    length = tensor.end - tensor.begin
    granule = WIDEST_ITEM_BYTES
    while length % granule:
        granule //= 2
    return WIDEST_ITEM_BYTES - granule
