"""Which devices hold which parts of a model: one device where it fits on one, consecutive parts each where it must span
several. Pure.

The parts are the embedding, the layers in order, the final norm and the head. As each device gets one run of them,
hidden states cross from device to device once a boundary.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from serverless_triton.backend.ledger import NoRoom
from serverless_triton.backend.messages import WireShare

MOST_DEVICES = 10  # of which the best set is sought; beyond it those with the most room


class DoesNotFit(NoRoom):
    """No set of devices has room for the parts; the message says which numbers decide, and what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one device holds: the next `parts` of the model's parts, in `bytes` of its memory."""

    device: str
    parts: int
    bytes: int

    @classmethod
    def of_wire(cls, share: WireShare) -> Share:
        device, parts, size = share
        return cls(device=device, parts=parts, bytes=size)

    def to_wire(self) -> WireShare:
        return self.device, self.parts, self.bytes


def plan(parts: Sequence[int], free: Mapping[str, int]) -> tuple[Share, ...]:
    """Shares of all parts, in order, for parts of these bytes and devices with so many bytes free. Raises DoesNotFit.

    A model that fits on one device gets the one that is left with the least, so that room for large ones remains;
    another gets as few devices as can hold it.
    """
    total = sum(parts)
    fitting = [(free_bytes, device) for device, free_bytes in free.items() if free_bytes >= total]
    if fitting:
        return (Share(device=min(fitting)[1], parts=len(parts), bytes=total),)
    devices = _span(parts, free)
    if devices is None:
        raise DoesNotFit(_why_not(parts, free))
    return tuple(_shares(parts, [(device, free[device]) for device in devices]))


def _span(parts: Sequence[int], free: Mapping[str, int]) -> list[str] | None:
    """The fewest devices that hold all parts, in the order in which they do.

    For each set of devices: how many parts it can hold at most, and which of them is last then. A device after another
    holds most if the one before held most, so the best of a set is made of the best of the sets that lack one.
    """
    names = sorted(free, key=lambda device: (-free[device], device))[:MOST_DEVICES]
    ends = list(accumulate(parts))
    held, last = {0: 0}, {0: 0}
    for chosen in sorted(range(1, 1 << len(names)), key=lambda mask: (mask.bit_count(), mask)):
        reached = [
            (_reach(ends, held[chosen ^ 1 << i], free[names[i]]), i) for i in range(len(names)) if chosen >> i & 1
        ]
        held[chosen], last[chosen] = max(reached)
        if held[chosen] == len(parts):
            return _unwound(chosen, last, names)
    return None


def _unwound(chosen: int, last: Mapping[int, int], names: Sequence[str]) -> list[str]:
    order: list[str] = []
    while chosen:
        order.append(names[last[chosen]])
        chosen ^= 1 << last[chosen]
    return order[::-1]


def _reach(ends: Sequence[int], first: int, free_bytes: int) -> int:
    """Up to before which part a device with so much room holds them, from `first` on."""
    begun = ends[first - 1] if first else 0
    return max(first, bisect_right(ends, begun + free_bytes))


def _shares(parts: Sequence[int], rooms: Iterable[tuple[str, int]]) -> Iterable[Share]:
    ends, first = list(accumulate(parts)), 0
    for device, free_bytes in rooms:
        last = _reach(ends, first, free_bytes)
        yield Share(device=device, parts=last - first, bytes=sum(parts[first:last]))
        first = last


def _why_not(parts: Sequence[int], free: Mapping[str, int]) -> str:
    rooms = ", ".join(f"{free[device]} on {device}" for device in sorted(free))
    largest = f", the largest of its {len(parts)} parts {max(parts)}" if len(parts) > 1 else ""
    advice = "lower kv_cache_bytes, or give the node more memory or another device"
    return f"{sum(parts)} bytes of device memory asked for{largest}; free are {rooms}; {advice}"
