"""When a worker has to leave because memory goes to nobody: what it holds beyond what its model needs.

An allocator keeps what it has once got, in pieces that may fit nothing; a new worker starts without them. So a worker
leaves while nobody uses it, its stub is parked, and the next request starts another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from serverless_triton.backend.processes import private_bytes

NEEDED_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a worker holds of a device's memory, and what of it is in use."""

    held_bytes: int
    needed_bytes: int

    @property
    def wasted_bytes(self) -> int:
        return self.held_bytes - self.needed_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RetirementRule:
    """A worker is due that wastes more than `waste_bytes`, and more than a quarter of what it needs. Pure."""

    waste_bytes: int = 256 << 20

    def is_due(self, memory: Memory) -> bool:
        return memory.wasted_bytes > max(self.waste_bytes, memory.needed_bytes // NEEDED_SHARE)


class WorkerMemory:
    """This process's memory since its model was loaded.

    On a CPU it is what the process holds for itself now beyond what it held then: without streams no KV memory is in
    use, and weights are the store's. On GPUs it is what torch's allocator has reserved, and what of it is allocated.
    """

    def __init__(self, devices: tuple[str, ...] = (), measure: Callable[[int], int] = private_bytes) -> None:
        """Begins now. `devices` are those that the model was placed on; none: the CPU."""
        self._devices = devices
        self._measure = measure
        self._loaded_bytes = measure(os.getpid())

    def now(self) -> Memory:
        if not self._devices:
            return Memory(held_bytes=self._measure(os.getpid()) - self._loaded_bytes, needed_bytes=0)
        import torch

        return Memory(
            held_bytes=sum(torch.cuda.memory_reserved(device) for device in self._devices),
            needed_bytes=sum(torch.cuda.memory_allocated(device) for device in self._devices),
        )
