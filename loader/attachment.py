"""What a client gets for a lease: tensors by name, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from .receipts import LoadReceipt
from .replies import Attached, DeviceAttached

if TYPE_CHECKING:
    import torch

    from ._core import ArenaSlice, DeviceMemory

    Memory = list[ArenaSlice] | list[DeviceMemory]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A lease: read-only tensors by name, and what it cost to get them.

    The lease lasts until neither the attachment nor any of the tensors is referred to.
    """

    tensors: Mapping[str, torch.Tensor]
    receipt: LoadReceipt
    image_id: int
    _contents: dict[str, torch.Tensor] = field(repr=False)
    _memory: Memory = field(repr=False)


def attachment_of(
    attached: Attached | DeviceAttached,
    begin_s: float,
    contents: dict[str, torch.Tensor],
    memory: Memory,
) -> Attachment:
    """Of memory that was leased, seen as tensors since `begin_s` of the performance counter."""
    return Attachment(
        tensors=MappingProxyType(contents),
        receipt=replace(attached.receipt, attach_s=time.perf_counter() - begin_s),
        image_id=attached.image_id,
        _contents=contents,
        _memory=memory,
    )
