"""A client's view of the store's arena: mapped read-only once, every attachment a few slices of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import _core
from .held_leases import HeldLeases
from .layout import Extent
from .replies import ArenaMapped
from .requests import Release

if TYPE_CHECKING:
    import torch


class ArenaView:
    """One arena and the leases on its images. Takes over the descriptor `fd`. Raises StoreFull."""

    def __init__(self, mapped: ArenaMapped, fd: int, leases: HeldLeases) -> None:
        self.arena_id = mapped.arena_id
        self.leases = leases
        self._fd = fd
        self._mapping = _core.ArenaMapping(fd, mapped.bytes)

    def __del__(self) -> None:
        os.close(self._fd)

    def populate(self) -> None:
        """Fills the page tables of all memory that the store has by now, so that attaching faults no more."""
        self._mapping.populate(_core.ReadJob())

    def hold(self, image_id: int, extents: Sequence[Extent]) -> list[_core.ArenaSlice]:
        """The memory of an image's files; the lease ends when all of it is dropped."""
        slices = [self._slice(extent) for extent in extents]
        self.leases.hold(Release(image_id=image_id), slices)
        return slices

    def _slice(self, extent: Extent) -> _core.ArenaSlice:
        if len(extent.pieces) == 1:
            return self._mapping.slice(extent.pieces[0].offset, extent.bytes)
        pieces = [(piece.offset, piece.length) for piece in extent.pieces]
        return _core.ArenaMapping.scattered(self._fd, pieces)


def tensors_in(
    slices: Sequence[_core.ArenaSlice], extents: Sequence[Extent], is_wanted: Callable[[str], bool]
) -> dict[str, torch.Tensor]:
    """The wanted tensors of all files, by name. Raises CheckpointError."""
    from .tensors import tensors_of

    tensors: dict[str, torch.Tensor] = {}
    for memory, extent in zip(slices, extents, strict=True):
        tensors |= tensors_of(memory, extent.bytes, extent.file_name, is_wanted)
    return tensors
