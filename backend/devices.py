"""A node's devices: what a replica needs of them, which of them it goes to, and who has how much."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from serverless_triton.backend.device_map import Share, plan
from serverless_triton.backend.ledger import DeviceLedgers
from serverless_triton.backend.messages import ModelSpec
from serverless_triton.backend.model_parts import parts_for

CPU = "cpu"
_GPU = re.compile(r"cuda:[0-9]{1,3}")

PartsOf = Callable[[ModelSpec], Sequence[int]]


def device_names(text: str) -> tuple[str, ...]:
    """From "cpu" or "cuda:0,cuda:1". Raises ValueError."""
    names = tuple(text.split(","))
    if names != (CPU,) and not all(_GPU.fullmatch(name) for name in names):
        raise ValueError(f"devices are {text!r}; give cpu, or GPUs as cuda:0,cuda:1")
    if len(set(names)) < len(names):
        raise ValueError(f"devices are {text!r}; name each once")
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device as others are told of it. `id` is its place among the node's devices."""

    id: int
    name: str
    memory_bytes: int
    granted_bytes: int


class Devices:
    """One ledger a device, and the device map of every replica that comes. `budgets` are bytes by device.

    A node computes on its CPU, where weights that run as they are stored lie in the store's arena and do not count, or
    on its GPUs.
    """

    def __init__(self, budgets: Mapping[str, int], parts_of: PartsOf | None = None) -> None:
        self.hold_weights = CPU not in budgets
        self._first = min(budgets)
        self._ledgers = DeviceLedgers(budgets)
        self._parts_of = parts_of or (lambda spec: parts_for(spec, weights_on_device=self.hold_weights))

    @property
    def budget_bytes(self) -> int:
        return self._ledgers.budget_bytes

    @property
    def granted_bytes(self) -> int:
        return self._ledgers.granted_bytes

    def shown(self) -> tuple[Device, ...]:
        """All devices, by id; also one without budget that a replica of an earlier agent lies on."""
        return tuple(
            Device(id=number, name=name, memory_bytes=budget, granted_bytes=granted)
            for number, (name, (budget, granted)) in enumerate(self._ledgers.amounts().items())
        )

    def parts(self, spec: ModelSpec) -> Sequence[int]:
        """Bytes of each part of this model. Raises CheckpointError where its files have to be looked at."""
        return self._parts_of(spec)

    def check(self, parts: Sequence[int], ending: Iterable[str] = ()) -> None:
        """Raises DoesNotFit where there is no room, nor will be once the holders in `ending` have gone."""
        plan(parts, self._ledgers.free_bytes(ending))

    def grant(self, holder: str, parts: Sequence[int]) -> tuple[Share, ...]:
        """Room for all parts. Raises DoesNotFit, and has granted nothing then."""
        shares = plan(parts, self._ledgers.free_bytes())
        self._ledgers.grant(holder, {share.device: share.bytes for share in shares})
        return shares

    def adopt(self, holder: str, shares: Iterable[Share], size: int) -> None:
        """Record what a replica of an earlier agent has: its shares or, while they are unknown, its size."""
        amounts = {share.device: share.bytes for share in shares}
        self._ledgers.adopt(holder, amounts or {self._first: size})

    def give_back(self, holder: str) -> None:
        """Idempotent."""
        self._ledgers.give_back(holder)
